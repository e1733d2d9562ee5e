"""Finished runs beside each other."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

import checkpoints
import dllm
from dllm.cli import main
from dllm.errors import DllmError
from dllm.evaluate import report
from dllm.evaluate.front import aup, front
from dllm.evaluate.runner import evaluate
from dllm.evaluate.score import mcnemar, paired_bootstrap
from dllm.evaluate.tasks import make

SIZES = {"gen_length": 12, "block_length": 4, "batch_size": 4, "limit": 6}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs by a name of their own."""
    folder = tmp_path_factory.mktemp("runs")
    model = dllm.load(checkpoints.save(tmp_path_factory.mktemp("model")))

    def run(name, task="lists", **options):
        evaluate(model, make(task), folder / name, name="tiny", **SIZES | options)

    run("static", sampler="static")
    run("threshold", sampler="threshold:threshold=0.01")
    run("batch", batch_size=2)
    run("more", limit=8)
    run("math", task="math")
    return folder


def change(folder, to, results=None, samples=None):
    """A copy of a run's files in which a function has changed the results, or each sample."""
    to.mkdir()
    for path in folder.rglob("*.json*"):
        changed = results if path.suffix == ".json" else samples
        text = path.read_text()
        lines = [json.loads(text)] if path.suffix == ".json" else list(map(json.loads, text.splitlines()))
        for line in lines if changed else ():
            changed(line)
        (to / path.name).write_text("\n".join(map(json.dumps, lines)))
    return to


@pytest.fixture
def right(runs, tmp_path):
    """Two runs that are right on 1 and on 5 of 6 questions, one of them on both."""

    def score(count, name):
        values = iter([1.0] * count + [0.0] * (6 - count))
        return change(runs / name, tmp_path / name, samples=lambda s: s.update(correct=next(values)))

    return score(1, "static"), score(5, "threshold")


def test_a_run_is_compared_with_the_first_on_the_same_questions(right):
    first, second = map(report.read, right)
    base, other = report.row(first, first), report.row(second, first)
    assert "difference" not in base and base["n"] == 6 and base["accuracy"] == 1 / 6
    assert other["difference"] == pytest.approx(4 / 6)
    assert other["difference_interval"] == paired_bootstrap(first.values, second.values)
    assert other["p"] == mcnemar(first.values, second.values) == 0.125
    assert other["speedup"] == other["tokens_per_second"] / base["tokens_per_second"]


def test_the_table_tells_a_speed_up_beside_both_absolute_figures(right, capsys, monkeypatch):
    monkeypatch.chdir(right[0].parent)  # a long path would be folded, and so would a narrow table be
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["report", *(folder.name for folder in right)]) == 0
    out = capsys.readouterr().out
    first, second = (line.split() for line in out.splitlines() if re.match(r"\S+ +6 ", line))
    assert first[-3:] == ["-", "-", "-"] and first[1:3] == ["6", "16.7"]
    assert second[1:3] == ["6", "83.3"] and "+66.7" in second and second[-2] == "0.125"
    base, other = (report.row(report.read(folder), report.read(right[0])) for folder in right)
    assert f"{base['tokens_per_second']:.0f}" in first and f"{other['tokens_per_second']:.0f}" in second
    assert re.search(r"static: lists, correct; tiny on cpu \(float32, 1 threads, torch", out) and "seed 0" in out


def test_times_are_compared_under_the_same_conditions_only(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)  # a long path would be folded
    first, other = report.read(Path("threshold")), report.read(Path("batch"))
    assert report.row(report.read(runs / "static"), first)["speedup"] > 0
    threads = change(runs / "static", tmp_path / "threads", results=lambda r: r["conditions"].update(threads=64))
    workers = change(runs / "static", tmp_path / "workers", results=lambda r: r["timing"].update(workers=2))
    for run in (other, report.read(threads), report.read(workers)):
        assert report.row(run, first)["speedup"] is None and "difference" in report.row(run, first)
    console = Console(file=io.StringIO(), width=150)
    console.print(report.table([report.row(first, first), report.row(other, first)]))
    assert console.file.getvalue().splitlines()[4].split()[-1] == "-"


def test_one_run_and_json(runs, capsys):
    assert main(["report", str(runs / "static")]) == 0
    assert "difference" not in capsys.readouterr().out
    [path] = (runs / "static").rglob("results_*.json")
    assert main(["report", str(path), str(runs / "threshold"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["run"] for row in rows] == [f"tiny/{path.stem}", str(runs / "threshold")]
    assert rows[1]["difference_interval"] and {"answer_tokens", "canvas_tokens", "decode_tokens_per_second"} <= set(
        rows[0]
    )


def test_a_picture_has_a_dot_for_each_run(right, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "draw", lambda *given: (drawn.append(given), given[-1].write_text("png")))
    assert main(["report", *map(str, right), "--png", str(tmp_path / "new" / "a.png")]) == 0
    [(tasks, told, _)] = drawn
    [(task, dots)] = tasks.items()
    rows = [report.row(run, report.read(right[0])) for run in map(report.read, right)]
    assert [dot.label for dot in dots] == [row["run"] for row in rows] and task == f"{rows[0]['task']}, correct"
    for dot, row in zip(dots, rows, strict=True):
        assert (dot.accuracy, dot.low, dot.high) == (row["accuracy"], *row["interval"])
        assert (dot.tokens_per_forward, dot.tokens_per_second) == (row["tokens_per_forward"], row["tokens_per_second"])
    assert all(row["run"] in told for row in rows) and (tmp_path / "new" / "a.png").read_text() == "png"


def test_runs_of_several_tasks_are_compared_within_each(runs, tmp_path, monkeypatch, capsys):
    drawn, folders = [], [str(runs / name) for name in ("static", "math", "threshold")]
    monkeypatch.setattr(report, "draw", lambda *given: (drawn.append(given), given[-1].write_text("png")))
    assert main(["report", *folders, "--json", "--png", str(tmp_path / "a.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert ["difference" in row for row in found["rows"]] == [False, False, True]
    [(tasks, *_)] = drawn
    dots = {name.split(",")[0]: [(d.tokens_per_forward, 100 * d.accuracy) for d in own] for name, own in tasks.items()}
    assert list(map(len, dots.values())) == [2, 1]
    assert found["aup"] == {name: pytest.approx(aup(front(own)), abs=0.01) for name, own in dots.items()}
    assert main(["report", *folders]) == 0
    out = capsys.readouterr().out
    assert out.count("right") == 2 and re.search(r"^AUP of the front .*: lists \d+, math \d+$", out, re.MULTILINE)


def test_shares_have_no_exact_test(runs, tmp_path):
    shares = change(runs / "static", tmp_path / "shares", samples=lambda s: s.update(correct=0.25))
    found = report.row(report.read(shares), report.read(runs / "threshold"))
    assert found["p"] is None and report.compared(found)[1] == "-"


def test_runs_that_do_not_compare_are_refused(runs, tmp_path):
    first = report.read(runs / "static")
    text = change(runs / "static", tmp_path / "text", samples=lambda s: s.update(doc_hash="other"))
    metric = change(runs / "static", tmp_path / "metric", results=lambda r: r.update(headline="consistent"))
    for folder, message in [
        (runs / "more", "has 6 questions and .*more 8: 6 in common, 0 and 2 in one only"),
        (runs / "math", "has 6 questions and .*math 6: 0 in common, 6 and 6 in one only"),
        (text, "6 of 6 questions of .* have the same id and another text, as lists/"),
        (metric, "static is headed by correct and .*metric by consistent"),
    ]:
        with pytest.raises(DllmError, match=message):
            report.row(report.read(folder), first)


def test_what_is_no_run_is_one_line(runs, tmp_path, capsys):
    cut = change(runs / "static", tmp_path / "cut", results=lambda r: r["ids"].pop())
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "results_1.json").write_text('{"results": {"gsm8k": {}}, "date": 3.5}')
    for folder, message in [
        (tmp_path / "nowhere", "holds no results_*.json; give one file or its folder"),
        (runs, "holds 5 results files"),
        (cut, "and the samples beside it are not of one run"),
        (foreign, "are not those of an evaluation of ours"),
    ]:
        assert main(["report", str(folder)]) == 2
        assert message in capsys.readouterr().err
