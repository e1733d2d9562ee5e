"""Questions on Ray actors: the same files as one process, whoever dies."""

import json
import os
import signal
import sys
import warnings
from collections import Counter
from contextlib import nullcontext

import pytest
import torch

import dllm
from dllm import DllmError
from dllm.cli import main
from dllm.evaluate import cluster, results
from dllm.evaluate.answers import Answer, Method, answers
from dllm.evaluate.cluster import Totals, shares, workers
from dllm.evaluate.runner import collect, evaluate
from dllm.evaluate.tasks import make

ray = pytest.importorskip("ray")
N = 12
METHOD = {"sampler": "threshold", "cache": "dual", "gen_length": 32, "batch_size": 1}


@pytest.fixture(scope="module")
def local():
    """A cluster on this machine, with room for two workers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own start
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results file of one process."""
    model = dllm.load("tiny-llada", dtype="float64", device="cpu")
    return evaluate(model, make("lists"), tmp_path_factory.mktemp("whole"), name="tiny-llada", limit=N, **METHOD)


def read(path):
    """Scores and samples, without what tells of time and of the process's threads."""
    found = json.loads(path.read_text())
    found["conditions"].pop("threads")
    file = path.with_name(path.name.replace("results_", "samples_lists_") + "l")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in each.items() if k not in results.TIMES} for each in (found, *samples)]


@pytest.fixture(scope="module")
def pool(local):  # noqa: ARG001
    with workers(2, "tiny-llada", "cpu", "float64") as pool:
        yield pool


def pids(pool):
    """The processes of the workers."""
    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in pool.actors], timeout=300)


def do(actor, call):
    """Call a function in the process of a worker."""
    return ray.get(actor.__ray_call__.remote(lambda _: call()), timeout=300)


def test_a_worker_that_is_killed_costs_nothing_that_was_finished(pool, whole, tmp_path):
    task, before, told = make("lists"), pids(pool), Counter()

    def counting(asked, method):
        for answer in pool(asked, method):
            told[answer.index] += 1
            yield answer

    def die_at_the_third():
        """Let this worker's process die before its third answer."""
        real = cluster.answers

        def dying(*given):
            for n, answer in enumerate(real(*given)):
                if n == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield answer

        cluster.answers = dying

    do(pool.actors[0], die_at_the_third)
    path = collect(task, Method.of(task, **METHOD), pool.environment, counting, tmp_path, N)
    after = pids(pool)
    assert after[1] == before[1] and after[0] not in before, "another one took over"
    assert set(told.values()) == {1} and len(told) == N, "no answer was asked for or written twice"
    assert read(path) == read(whole)


def test_the_command_line_gives_the_files_of_one_process(pool, whole, tmp_path, capsys, monkeypatch):
    asked_for = []
    monkeypatch.setattr(cluster, "workers", lambda *given: asked_for.append(given) or nullcontext(pool))
    line = ["eval", "--task", "lists", "--device", "cpu", "--dtype", "float64", "--limit", str(N), "--ray", "2"]
    line += ["--gen_length", "32", "--batch_size", "1", "--output", str(tmp_path)]
    assert main([*line, "--json"]) == 0 and asked_for == [(2, "tiny-llada", "cpu", "float64")]
    [path] = (tmp_path / "tiny-llada").glob("results_*.json")
    assert read(path) == read(whole) and json.loads(capsys.readouterr().out)["rows"][0]["n"] == N
    timing = json.loads(path.read_text())["timing"]
    assert timing["workers"] == 2 and timing["ranks"] == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(line) == 2 and "starts its own processes" in capsys.readouterr().err


def test_what_a_worker_refuses_is_one_line_here(pool):
    task = make("lists")
    with pytest.raises(DllmError, match="the model's context is 512"):
        list(pool(dict(enumerate(task.questions()[:1])), Method.of(task, gen_length=5000)))
    with pytest.raises(DllmError, match="did you mean 'tiny-llada'"):
        cluster.Pool(1, lambda: pool.actors[0], ("tiny-lada", None, None))
    with pytest.raises(DllmError, match="ray=99 workers need a CPU each, and there are 2"), workers(99, "tiny-llada"):
        pass


def test_a_replacement_that_cannot_open_the_model_says_why(pool, monkeypatch):
    task = make("lists")
    monkeypatch.setattr(pool, "opened", {**pool.opened})
    monkeypatch.setattr(pool, "opening", ("tiny-lada", None, None))
    monkeypatch.setattr(pool, "start", lambda: pool.actors[0])
    pool.replace(pool.actors[0])
    with pytest.raises(DllmError, match="did you mean 'tiny-llada'"):
        list(pool(dict(enumerate(task.questions()[:1])), Method.of(task, **METHOD)))


def test_workers_must_be_alike(pool):
    other = pool.actors[1]
    threads = do(other, lambda: torch.get_num_threads())
    do(other, lambda: torch.set_num_threads(7))
    with pytest.raises(DllmError, match=r"worker 0 has threads \d, worker 1 threads 7; give them machines"):
        cluster.Pool(2, iter(pool.actors).__next__, pool.opening)
    do(other, lambda: torch.set_num_threads(threads))


def test_workers_that_die_again_and_again_end_the_run(pool, monkeypatch):
    monkeypatch.setattr(cluster, "DEATHS", 0)
    task = make("lists")
    os.kill(pids(pool)[0], signal.SIGKILL)
    with pytest.raises(DllmError, match="1 workers died"):
        list(pool(dict(enumerate(task.questions()[:8])), Method.of(task, **METHOD)))


def test_no_workers_and_no_ray_are_refused(monkeypatch):
    with pytest.raises(DllmError, match="ray=0 workers"), workers(0, "tiny-llada"):
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DllmError, match="needs the package ray"), workers(1, "tiny-llada"):
        pass


def test_shares_hold_every_question_once():
    asked = dict(enumerate(make("lists").questions()[:10]))
    found = shares(asked, 4)
    assert [len(share) for share in found] == [4, 4, 2]
    assert {i: q for share in found for i, q in share.items()} == asked


def answered(index, seconds, decode_seconds, forwards):
    counts = dict.fromkeys(("nfe", "prefills", "committed", "rows", "answer_tokens", "generated_tokens"), 1)
    counts |= {"canvas_tokens": 1, "decode_tokens": 1, "first_seconds": 0.5, "draft_seconds": seconds / 4}
    return Answer(index, "", ("",), **counts, seconds=seconds, decode_seconds=decode_seconds, forwards=forwards)


def test_times_of_workers_side_by_side_are_those_of_the_slowest():
    totals, answer = Totals(), answered(0, 2.0, 1.0, 10)
    assert totals.tell("a", answer).seconds == 2.0
    told = totals.tell("b", answered(1, 3.0, 0.5, 5))
    assert (told.seconds, told.decode_seconds, told.forwards) == (3.0, 1.0, 15)
    totals.rest("a")
    told = totals.tell("a", answer)
    assert (told.seconds, told.decode_seconds, told.forwards) == (4.0, 2.0, 25), "its second share adds to its first"
    totals.inherit("a", "c")
    told = totals.tell("c", answer)
    assert (told.seconds, told.decode_seconds, told.forwards) == (6.0, 3.0, 35), "so do those of its replacement"
    totals.rest("c")
    assert totals.tell("b", answer).seconds == 6.0 and "a" not in totals.before


def test_workers_answer_as_the_engine_does():
    worker, task = cluster.Worker(), make("lists")
    assert worker.open("tiny-llada", "cpu", None)["model"] == "tiny-llada"
    asked, method = dict(enumerate(task.questions()[:2])), Method.of(task, **METHOD)
    texts = [
        [answer.texts for answer in found]
        for found in (worker.answers(asked, method), answers(worker.model, asked, method))
    ]
    assert texts[0] == texts[1]
