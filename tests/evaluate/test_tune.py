"""Tuning: what it searches, what it proves, and how often it may be wrong."""

import random
from dataclasses import replace
from itertools import chain

import pytest

import dllm
from dllm import DllmError
from dllm.evaluate import bench as bench_module
from dllm.evaluate import tasks, tuned
from dllm.evaluate.answers import Method
from dllm.evaluate.bench import BASELINE, Bench, Candidate, Cell, figures
from dllm.evaluate.finished import Finished
from dllm.evaluate.tasks.base import Question
from dllm.evaluate.tune import approved, better_half, finalists, fronts, search
from dllm.evaluate.tuned import split, table, tune, used
from dllm.models.tiny import SIZES
from dllm.spec import ModelSpec

A, B, C, D = (Candidate(name, "none") for name in "abcd")
ASKED = [Question(str(i), f"question {i}", {}) for i in range(100)]


def cell(right, n=100, speed=1.0):
    """`right` of n questions answered right, the first ones."""
    return Cell(tuple(int(i < right) for i in range(n)), nfe=n, generated_tokens=100 * n, seconds=100 * n / speed)


class FakeBench:
    """Answers each question right with the candidate's probability, at the candidate's speed."""

    def __init__(self, chances, seed=0):
        self.chances, self.seed, self.asked = chances, seed, []

    def __call__(self, candidate, asked):
        self.asked.append((candidate, [q.id for q in asked]))
        share, speed = self.chances[candidate]
        # The same draw for every candidate: answers differ no more than they must.
        right = tuple(int(random.Random(f"{self.seed} {q.id}").random() < share) for q in asked)
        return Cell(right, nfe=len(asked), generated_tokens=len(asked), seconds=len(asked) / speed)


def test_fronts_hold_what_nothing_beats():
    base = cell(80)
    cells = {A: cell(80, speed=2), B: cell(70, speed=4), C: cell(75, speed=1), D: cell(70, speed=3)}
    assert list(fronts(cells, base)) == [[A, B], [C, D]]
    assert list(fronts({A: base, B: base}, base)) == [[A, B]], "equals do not beat each other"


def test_the_better_half_is_fast_or_right_and_nothing_surely_too_bad():
    base = cell(80)
    cells = {A: cell(80, speed=2), B: cell(78, speed=4), C: cell(75, speed=1), D: cell(20, speed=9)}
    assert set(better_half(cells, base, 0.01)) == {A, B}
    assert better_half({D: cells[D]}, base, 0.01) == []


def test_a_search_asks_all_the_same_questions_and_fewer_of_them_more():
    fake = FakeBench({BASELINE: (0.8, 1), A: (0.8, 2), B: (0.79, 3), C: (0.3, 9), D: (0.2, 8)})
    cells = search(fake, [A, B, C, D], ASKED, 0.01)
    assert [len(cells[c].right) for c in (BASELINE, A, B)] == [100, 100, 50] or len(cells[B].right) == 100
    assert len(cells[C].right) == len(cells[D].right) == 25
    asked = [ids for c, ids in fake.asked if c == BASELINE]
    assert [len(ids) for ids in asked] == [25, 25, 50] and [*chain(*asked)] == [q.id for q in ASKED]


def test_only_what_is_faster_and_not_worse_is_worth_a_test():
    cells = {BASELINE: cell(80, speed=2), A: cell(80, speed=1), B: cell(79, speed=3), C: cell(60, speed=9)}
    cells[D] = cell(50, n=50, speed=9)  # fell out of the search
    assert finalists(cells, 0.05) == [B]
    assert finalists({BASELINE: cell(80)}, 0.05) == []


def test_tests_stop_at_the_first_that_fails():
    fake = FakeBench({BASELINE: (0.8, 1), A: (0.8, 2), B: (0.5, 3), C: (0.8, 4)})
    cells, passed = approved(fake, [A, B, C], ASKED, 0.05, 0.1)
    assert list(passed) == [A] and C not in cells and passed[A] <= 0.05
    assert approved(fake, [], ASKED, 0.05, 0.1) == ({}, {})


def test_a_candidate_that_loses_more_is_rarely_approved():
    """Its true loss is just above what was asked for; answers are independent of the baseline's, the hardest case."""

    class Independent(FakeBench):
        def __call__(self, candidate, asked):
            draw = random.Random(f"{self.seed} {candidate}")
            return Cell(tuple(int(draw.random() < self.chances[candidate][0]) for _ in asked), seconds=1.0)

    chances = {BASELINE: (0.95, 1), A: (0.84, 2), B: (0.84, 3)}
    wrong = sum(bool(approved(Independent(chances, seed), [A, B], ASKED, 0.10, 0.2)[1]) for seed in range(150))
    assert wrong <= 0.2 * 150
    chances = {BASELINE: (0.95, 1), A: (0.95, 2)}
    right = sum(bool(approved(Independent(chances, seed), [A], ASKED, 0.10, 0.2)[1]) for seed in range(150))
    assert right > 0.5 * 150, "and one that loses nothing is approved more often than not"


@pytest.fixture(scope="module")
def llada():
    return dllm.load("tiny-llada")


def run(llada, folder=None, **more):
    options = {
        "lose": 30.0,
        "delta": 0.2,
        "n": 36,
        "samplers": ["threshold:threshold=0.95"],
        "caches": ["none", "dual"],
    }
    return tune(llada, tasks.make("lists"), folder, name="tiny-llada", **options | more, gen_length=24)


@pytest.fixture
def fake(monkeypatch):
    """Candidates that answer as the baseline does, twice as fast, and no model works; gives what was asked of them."""
    asked = []

    def measure(_bench, candidate, questions):
        asked.append((candidate, len(questions)))
        return Cell((1,) * len(questions), 10, 10, 2.0 if candidate == BASELINE else 1.0)

    monkeypatch.setattr(Bench, "measure", measure)
    return asked


def test_tuning_finds_a_setting_and_says_what_is_proved(monkeypatch):
    measure = Bench.measure

    def counted(*given):
        cell = measure(*given)
        return replace(cell, seconds=float(cell.nfe))  # speed as the algorithms have it, not this machine

    monkeypatch.setattr(Bench, "measure", counted)
    exact = dllm.load("tiny-llada", dtype="float64", device="cpu")
    found = run(exact, caches=["none"], n=24, lose=60.0)
    assert found["settings"]["sampler"] == "threshold:threshold=0.95" and found["settings"]["gen_length"] == 24
    assert found["loss_at_most"] <= 60 and "With probability at least 0.8" in found["guarantee"]
    base, *others = found["held_out"]
    assert (base["sampler"], base["cache"], base["n"]) == ("static", "none", 16)
    assert all(row["tokens_per_forward"] > base["tokens_per_forward"] for row in others)
    assert table("held out", found["held_out"]).row_count == len(found["held_out"])


@pytest.mark.usefixtures("fake")
def test_where_nothing_can_be_proved_the_baseline_stays(llada):
    found = run(llada, lose=1.0)
    assert found["settings"]["sampler"] == "static" and found["settings"]["cache"] == "none"
    assert found["loss_at_most"] is None and "Nothing proved" in found["guarantee"]
    assert "230 held-out questions" in found["guarantee"]
    slow = run(llada, samplers=["static"], caches=["none"])
    assert "none was worth a test" in slow["guarantee"] and slow["held_out"] == []


@pytest.mark.parametrize(
    "given",
    [{}, {"gen_length": 256}, {"block_length": 8, "eos_early_stop": False, "temperature": 0.5, "drafts": 2}],
    ids=str,
)
def test_what_is_written_makes_the_settings_that_were_tuned(given):
    """Also where they are the usual ones, and the protocol's are not."""
    protocol = {"gen_length": 64, "block_length": 16, "temperature": 0.2}
    task = replace(tasks.make("lists"), settings=protocol)
    settings = Method.of(task, **given).settings
    assert Method.of(task, **used(settings)).settings == settings


class Killed(BaseException):
    """Stops a search where a kill would."""


def test_a_killed_search_goes_on_with_what_is_finished(tmp_path, llada, fake, monkeypatch):
    whole, total, measure = run(llada), len(fake), Bench.measure

    def three(*args):
        if len(fake) == total + 3:
            raise Killed
        return measure(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "measure", three)
        with pytest.raises(Killed):
            run(llada, tmp_path)
    assert run(llada, tmp_path) == whole and len(fake) == 2 * total, "each cell was measured once"
    assert run(llada, tmp_path) == whole and len(fake) == 2 * total, "nothing is left to do"
    assert run(llada, tmp_path, n=39) != whole and len(fake) > 2 * total, "other questions"
    done, conditions = len(fake), tuned.conditions
    monkeypatch.setattr(tuned, "conditions", lambda *given: conditions(*given) | {"threads": 64})
    run(llada, tmp_path)
    assert len(fake) == done + total, "speeds with other threads are other speeds"


def test_questions_are_seen_or_held_out():
    task = tasks.make("lists")
    seen, held_out = split(task, 60)
    assert (len(seen), len(held_out)) == (20, 40) and not {q.id for q in seen} & {q.id for q in held_out}
    assert split(task, 60) == (seen, held_out) and sum(map(len, split(task, None))) == 500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lose": 0.0}, "lose=0.0 points cannot be proved"),
        ({"lose": 100.0}, "cannot be proved"),
        ({"delta": 1.0}, "delta=1.0 is not a probability"),
        ({"steps": 8}, "steps=8: the baseline takes one token a step"),
        ({"n": 8}, "n=8: give 24 to 500 questions"),
        ({"n": 501}, "n=501"),
        ({"samplers": ["treshold"]}, "did you mean 'threshold'"),
        ({"caches": ["duel"]}, "did you mean 'dual'"),
    ],
)
def test_what_cannot_be_is_refused(llada, options, message):
    with pytest.raises(DllmError, match=message):
        run(llada, **options)


def test_caches_are_searched_that_suit_the_model():
    spec = ModelSpec(**SIZES)
    assert tuned.usual_caches(spec) == ("none", "dual")
    blocks = tuned.usual_caches(replace(spec, attention="block", block_length=8))
    assert all("block" in dllm.cache.make(name).patterns for name in blocks) and "exact" in blocks
    assert tuned.usual_caches(replace(spec, cacheable=False)) == ("none",)


def test_answers_must_be_right_or_wrong(llada, monkeypatch):
    task = tasks.make("lists")
    bench = Bench(llada, task, Finished(None), {}, {"gen_length": 16})
    monkeypatch.setattr(type(task), "score", lambda *_: {"correct": 0.5})
    with pytest.raises(DllmError, match="correct of lists has values between 0 and 1"):
        bench(BASELINE, task.questions()[:2])


def test_a_cell_counts_what_differs():
    first, second = Cell((1, 1, 0, 0), 4, 20, 2.0), Cell((1, 0, 1, 1), 2, 20, 1.0)
    assert second.differs(first) == (1, 2) and second.loss(first) == -0.25
    assert (first + second).right == (1, 1, 0, 0, 1, 0, 1, 1) and (first + second).tokens_per_second == 40 / 3
    assert figures(replace(first, seconds=0.0))["tokens_per_second"] == 0 and bench_module.BASELINE.cache == "none"
