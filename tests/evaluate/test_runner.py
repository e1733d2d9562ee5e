"""A run ends with the same files whether it was killed, shared out, or left alone."""

import errno
import io
import json
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

import dllm
from dllm.cli import main
from dllm.errors import DllmError
from dllm.evaluate import results, runner
from dllm.evaluate.runner import chosen, evaluate
from dllm.evaluate.score import wilson
from dllm.evaluate.store import Store, append
from dllm.evaluate.tasks import Question, make

N = 9
METHOD = {"sampler": "threshold", "cache": "dual", "gen_length": 32, "batch_size": 2}
ARGUMENTS = ["eval", "--model", "tiny-llada", "--device", "cpu", "--task", "lists", "--limit", str(N), "--dtype",
             "float64", "--gen_length", "32", "--batch_size", "2"]  # fmt: skip
KILLED = """
import os, signal, sys
from dllm.cli import main
from dllm.evaluate import runner
append, seen = runner.append, []
def kill(file, sample):
    append(file, sample)
    seen.append(sample)
    if len(seen) == 4:
        file.write(b'{"doc_id": 3, "torn')
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
runner.append = kill
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model():
    return dllm.load("tiny-llada", dtype="float64", device="cpu")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The results file of a run that nothing interrupted."""
    return evaluate(model, make("lists"), tmp_path_factory.mktemp("whole"), name="tiny-llada", limit=N, **METHOD)


@pytest.fixture
def run(model, tmp_path):
    """Evaluate into the test's own folder."""

    def run(**changes):
        options = {"name": "tiny-llada", "limit": N, **METHOD} | changes
        return evaluate(model, make("lists"), tmp_path, **options)

    return run


def read(path):
    """The results, then the samples, without what tells of time."""
    found = json.loads(path.read_text())
    file = path.with_name(path.name.replace("results_", "samples_lists_") + "l")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in each.items() if k not in results.TIMES} for each in (found, *samples)]


def names(folder):
    return sorted(re.sub(r"\d{4}-.*(?=\.json)", "DATE", path.name) for path in (folder / "tiny-llada").iterdir())


DONE = ["results_DATE.json", "samples_lists_DATE.jsonl"]


def test_a_killed_run_ends_as_one_that_was_not(whole, tmp_path, capsys):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *ARGUMENTS, "--output", tmp_path], env=environment, timeout=300
    )
    assert killed.returncode == -9
    assert names(tmp_path) == ["samples_lists_unfinished-0.jsonl", "unfinished_lists.json"]
    before = (tmp_path / "tiny-llada" / "samples_lists_unfinished-0.jsonl").read_bytes().splitlines()
    assert len(before) == 5 and before[-1].endswith(b"torn")
    assert main([*ARGUMENTS, "--output", str(tmp_path)]) == 0
    [path] = (tmp_path / "tiny-llada").glob("results_*.json")
    assert read(path) == read(whole) and names(tmp_path) == DONE
    timing = json.loads(path.read_text())["timing"]
    assert timing["sessions"] == 2 and timing["ranks"] == timing["workers"] == 1
    assert str(path) in capsys.readouterr().err


def test_ranks_share_the_work(whole, run, tmp_path):
    assert run(rank=1, world_size=2) is None
    assert names(tmp_path) == ["samples_lists_unfinished-1.jsonl", "unfinished_lists.json"]
    path = run(rank=0, world_size=2)
    assert read(path) == read(whole) and names(tmp_path) == DONE
    assert json.loads(path.read_text())["timing"]["ranks"] == 2
    assert run(rank=1, world_size=2) is None and names(tmp_path) == DONE, "a rank that comes too late asks nothing"


def test_rank_0_says_that_it_waits_for_the_others_and_reads_what_changed_only(run, monkeypatch, tmp_path):
    looks, waits, samples = [], [], Store.samples
    monkeypatch.setattr(Store, "samples", lambda store: looks.append(store) or samples(store))

    def wait(_):
        waits.append(len(looks))
        if len(waits) == 3:
            run(rank=1, world_size=2)
            waits.append(len(looks))

    monkeypatch.setattr(runner, "sleep", wait)
    console = Console(file=io.StringIO(), width=40)
    assert read(run(rank=0, world_size=2, console=console))
    assert waits[0] == waits[1] == waits[2] and len(looks) == waits[3] + 1
    assert console.file.getvalue() == f"waiting for 4 answers of other ranks in {tmp_path / 'tiny-llada'}\n"


def test_a_damaged_line_is_asked_again(run, monkeypatch, tmp_path, whole):
    unfinished(run, monkeypatch)
    file = tmp_path / "tiny-llada" / "samples_lists_unfinished-0.jsonl"
    lines = file.read_bytes().splitlines()
    for damaged in (lines[0][:40], b"\0" * 9, b"3", b"{}"):
        file.write_bytes(b"\n".join([damaged, *lines[1:], b""]))
        facts = json.loads((tmp_path / "tiny-llada" / "unfinished_lists.json").read_text())["facts"]
        assert len(Store(tmp_path, "tiny-llada", "lists", facts).samples()) == len(lines) - 1
    assert read(run()) == read(whole)


def test_a_file_system_without_links_will_do(run, monkeypatch, whole):
    def refuse(code):
        def link(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "link", link)

    refuse(errno.EIO)
    with pytest.raises(DllmError, match=r"cannot be written to \(Input/output error"):
        run()
    refuse(errno.EPERM)
    assert run(rank=1, world_size=2) is None
    refuse(errno.EOPNOTSUPP)
    assert read(run(rank=0, world_size=2)) == read(whole), "the head of the first stays"


def test_a_launcher_says_which_share_is_ours(tmp_path, capsys, monkeypatch, whole):
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main([*ARGUMENTS, "--output", str(tmp_path)]) == 0
        assert ("right" in capsys.readouterr().out) == (rank == "0")
    [path] = (tmp_path / "tiny-llada").glob("results_*.json")
    assert read(path) == read(whole)


def test_a_finished_run_is_not_repeated_and_another_stands_beside_it(run, monkeypatch, tmp_path):
    first = run()
    monkeypatch.setattr(runner, "answers", lambda *_: pytest.fail("asked again"))
    assert run() == first
    monkeypatch.undo()
    (tmp_path / "tiny-llada" / "results_9.json").write_text("not ours")
    assert run(gen_length=16) != first and len(names(tmp_path)) == 5


def unfinished(run, monkeypatch):
    """Break a run off after its second sample."""

    def fail(file, sample):
        append(file, sample)
        if sample["doc_id"] > 100:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner, "append", fail)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()


def test_a_run_goes_on_under_the_same_settings_only(run, monkeypatch, whole):
    unfinished(run, monkeypatch)
    for change, message in [
        ({"gen_length": 16}, "has gen_length 32, this one gen_length 16; repeat its options, give another"),
        ({"limit": None}, "has limit 9, this one limit null"),
        ({"sampler": "factor"}, r'has sampler \{"name": "threshold", "threshold": 0.9\}, this one sampler'),
    ]:
        with pytest.raises(DllmError, match=message):
            run(**change)
    assert read(run()) == read(whole)


def test_a_run_without_samples_stands_in_nobodys_way(run):
    with pytest.raises(DllmError, match="the model's context is 512"):
        run(gen_length=512)
    assert run()


def test_two_processes_do_not_write_one_file(run, tmp_path):
    run(rank=1, world_size=2)
    facts = json.loads((tmp_path / "tiny-llada" / "unfinished_lists.json").read_text())["facts"]
    other = Store(tmp_path, "tiny-llada", "lists", facts)
    with other.appending(0), pytest.raises(DllmError, match=r"another process is writing .*unfinished-0"):
        run()


def test_a_folder_that_cannot_be_written_to(model):
    with pytest.raises(DllmError, match=r"/proc/x/a__b cannot be written to .*; give another --output"):
        evaluate(model, make("lists"), "/proc/x", name="a/b", limit=1, **METHOD)


# The files


def test_names_are_those_of_the_harness(whole):
    found, first, *_ = read(whole)
    assert {"results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config",
            "git_hash", "model_name", "model_source", "task_hashes"} <= set(found)  # fmt: skip
    assert {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
            "prompt_hash", "target_hash", "correct"} <= set(first)  # fmt: skip
    assert (
        isinstance(first["resps"][0][0], str) and first["doc"]["question"] in first["arguments"]["gen_args_0"]["arg_0"]
    )
    assert found["n-samples"] == {"lists": {"original": 500, "effective": N}}
    assert found["config"]["limit"] == N and len(found["ids"]) == N
    assert found["conditions"]["dtype"] == "float64" and found["conditions"]["versions"]["torch"]


def test_the_harness_prints_our_results(whole):
    from lm_eval.utils import make_table

    row = next(line for line in make_table(json.loads(whole.read_text())).splitlines() if "correct" in line)
    share = json.loads(whole.read_text())["results"]["lists"]["correct,none"]
    assert [cell.strip() for cell in row.split("|")][3:9] == ["none", "0", "correct", "↑", f"{share:.4f}", "±"]


def test_scores_and_counts_are_those_of_the_samples(whole):
    found, *samples = read(whole)
    right = sum(s["correct"] for s in samples)
    assert found["results"]["lists"]["correct,none"] == right / N and 0 < right < N
    assert found["results"]["lists"]["correct_stderr,none"] == pytest.approx(
        (right / N * (1 - right / N) / (N - 1)) ** 0.5
    )
    assert found["intervals"]["correct"] == list(wilson(int(right), N))
    assert [s["doc_id"] for s in samples] == sorted(s["doc_id"] for s in samples)
    for name in ("nfe", "committed", "answer_tokens", "generated_tokens", "canvas_tokens"):
        assert found["counts"][name] == sum(s[name] for s in samples)
    assert found["counts"]["tokens_per_forward"] == found["counts"]["generated_tokens"] / found["counts"]["nfe"]
    timing = json.loads(whole.read_text())["timing"]
    assert timing["tokens_per_second"] == pytest.approx(found["counts"]["generated_tokens"] / timing["seconds"])
    assert 0 < timing["decode_seconds"] < timing["seconds"]


def test_the_answers_are_those_of_generate(model, whole):
    _, *samples = read(whole)
    questions = [s["doc"]["question"] for s in samples]
    done = dllm.generate(model, questions, "threshold", "dual", gen_length=32, batch_size=4)
    assert [s["resps"] for s in samples] == [[[text]] for text in done.texts]


def test_several_answers_give_pass_at_k(run):
    found, *samples = read(run(num_samples=5, temperature=1.0, limit=3))
    assert [len(s["resps"][0]) for s in samples] == [5] * 3 and all(0 <= s["correct"] <= 1 for s in samples)
    shares = found["results"]["lists"]
    assert shares["pass@1,none"] == pytest.approx(shares["correct,none"]) and "pass@10,none" not in shares
    assert shares["pass@1,none"] <= shares["pass@2,none"] <= shares["pass@5,none"]
    low, high = found["intervals"]["correct"]
    assert 0 <= low <= shares["correct,none"] <= high <= 1


def test_empty_answers_are_counted(run):
    found, *samples = read(run(stop=[","], limit=4))
    assert found["counts"]["empty"] == sum(not s["resps"][0][0].strip() for s in samples)
    found, *_ = read(run(stop=["a", "e", "i", "o", "u", *"bcdfghjklmnpqrstvwxyz"], limit=4))
    assert (
        found["counts"]["empty"] == 4 and found["counts"]["empty_share"] == 1 and found["counts"]["answer_tokens"] == 0
    )


def test_a_limit_takes_the_same_random_questions_always():
    questions = [Question(str(i), "x", {}) for i in range(200)]
    few, more = chosen(questions, 20), chosen(questions, 60)
    assert few.keys() <= more.keys() and len(few) == 20 and [*few] == sorted(few)
    assert chosen(questions, 20) == few and [*few] != list(range(20))
    assert [*chosen(questions, None)] == [*chosen(questions, 500)] == list(range(200))


def test_what_cannot_be_asked_is_one_line():
    questions = [Question("a", "x", {}), Question("a", "y", {})]
    with pytest.raises(DllmError, match="two questions of the task have the same id"):
        chosen(questions, None)
    for limit in (0, -1, True):
        with pytest.raises(DllmError, match=f"limit={limit} must be a whole number of at least 1"):
            chosen(questions[:1], limit)


def test_a_terminal_gets_a_bar(run):
    run(limit=3, rank=1, world_size=2)
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    run(limit=3, world_size=2, console=console)
    text = console.file.getvalue()
    assert "2/2" in text and "/3" not in text, "the rank's share"
    assert re.search(r"lists: \d+\.\d % right \[\d+ to \d+\]", text)


def test_equal_shares_have_an_interval_of_some_width():
    assert results.interval([{"correct": 0.6}] * 5, "correct") == wilson(3, 5)
    assert results.interval([{"correct": 0.5}], "correct") == wilson(0, 1)
    low, high = results.interval([{"correct": 0.5}, {"correct": 0.75}] * 8, "correct")
    assert high - low < 0.2, "what differs tells of its spread"
