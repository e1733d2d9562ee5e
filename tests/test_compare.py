import csv
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

import checkpoints
import dllm
from dllm import compare
from dllm.arguments import listed
from dllm.cli import main
from dllm.compare import Cell, legal, measure, note, pairs, questions, table, to_csv, to_png
from dllm.errors import DllmError
from dllm.evaluate.score import wilson
from dllm.metrics import DERIVED, Totals
from dllm.zoo.tasks import correct

SIZES = {"gen_length": 12, "block_length": 4, "batch_size": 2}
CONDITIONS = {
    "model": "tiny-llada", "device": "cpu", "dtype": "float32", "threads": 2, "versions": {"torch": "2.0", "dllm": "1"},
    "tasks": ["math", "lists"], "n": 50, "seed": 0, "gen_length": 64, "block_length": 32, "batch_size": 16,
    "temperature": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def opened(folder):
    return dllm.load(folder)


def cell(method="static", cache="none", right=30, rate=1.0, speed=100.0, lossless="no"):
    """50 answers of 48 tokens each. rate: tokens per forward. speed: tokens per second."""
    totals = Totals(
        answers=50,
        generated_tokens=2400,
        answer_tokens=2350,
        nfe=round(2400 / rate),
        rows=2400 * 257,
        columns=2400 * 257 if cache == "none" else 2400 * 685,
        kv_bytes=0 if cache == "none" else 4096,
        first_seconds=0.5,
        seconds=2400 / speed,
    )
    return Cell("lists", "m", method, cache, 50, right, right, lossless, totals)


def grid():
    rates = {"static": 0.92, "threshold:threshold=0.8": 2.6, "factor": 3.2}
    return [cell(s, c, 35 - i, r + i / 40) for s, r in rates.items() for i, c in enumerate(("none", "prefix", "dual"))]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def printed(width, cells=None):
    console = Console(file=io.StringIO(), width=width)
    console.print(table(cells or grid()))
    return console.file.getvalue()


def test_a_cell_tells_what_generate_did(opened):
    asked = questions(["math", "lists"], 2, 0)
    got = measure(opened, asked, "threshold:threshold=0.3", "prefix", **SIZES)
    done = dllm.generate(opened, [p.question for p in asked], "threshold:threshold=0.3", "prefix", **SIZES)
    assert got.n == 4 and got.right == sum(map(correct, asked, done.texts))
    told = got.record()
    assert told["nfe"] == done.nfe.float().mean() and told["rows"] == done.rows.float().mean()
    assert told["tokens_per_forward"] == done.tokens_per_forward and told["lossless"] == "no"
    assert told["tokens_per_second"] == pytest.approx(int(done.generated_tokens.sum()) / told["seconds"])
    assert (told["low"], told["high"]) == got.interval == wilson(got.right, 4)


def test_right_answers_are_counted(opened):
    asked = [
        replace(p, check=lambda text, i=i: i < 2 and isinstance(text, str))
        for i, p in enumerate(questions(["lists"], 3, 0))
    ]
    got = measure(opened, asked, "threshold", "dual", **SIZES)
    assert (got.right, got.consistent, got.accuracy) == (2, 2, 2 / 3)


def test_the_warm_up_is_short_and_not_counted(opened, monkeypatch):
    runs, asked = [], questions(["lists"], 3, 0)
    monkeypatch.setattr(compare, "stream", lambda *a, **k: runs.append(dllm.stream(*a, **k)) or runs[-1])
    got = measure(opened, asked, "static", "none", **SIZES, eos_early_stop=False)
    warm_up, run = runs
    assert warm_up.accounts.forwards == 8 < run.accounts.forwards and got.totals.nfe == 12 * 3
    assert not {tuple(r.prompt) for r in warm_up.requests} & {tuple(r.prompt) for r in run.requests}


def test_the_warm_up_asks_as_many_problems_that_are_not_measured():
    for task in ("math", "copy:length=4"):
        asked = questions([task], 5, 0)
        others = compare.unseen(asked)
        assert [p.task for p in others] == [task] * 5
        assert not {p.question for p in others} & {p.question for p in asked}


def test_progress_is_told(opened):
    told = []
    measure(opened, questions(["lists"], 3, 0), "static", "none", lambda *now: told.append(now), **SIZES)
    assert told == sorted(told) and {answers for answers, _ in told} <= {0, 1, 2, 3}
    assert [forwards for _, forwards in told[:-1]] == list(range(1, len(told))) and told[-1] == (3, len(told) - 1)


def test_static_takes_one_token_a_step_unless_told(opened):
    asked = questions(["lists"], 1, 0)
    assert measure(opened, asked, "static", "none", **SIZES, eos_early_stop=False).totals.nfe == 12
    assert measure(opened, asked, "static", "none", **SIZES, eos_early_stop=False, steps=3).totals.nfe == 3


def test_every_sampler_meets_every_cache_on_the_same_test_problems(opened):
    asked = questions(["math", "lists"], 2, 7)
    assert asked == questions(["math", "lists"], 2, 7) != questions(["math", "lists"], 2, 8)
    assert [p.task for p in asked] == ["math", "math", "lists", "lists"]
    chosen = pairs(["static", "factor"], ["none", "dual"])
    cells = compare.run(opened, asked, chosen, Console(file=io.StringIO()), **SIZES)
    assert [(c.method, c.cache) for c in cells] == 3 * chosen
    assert chosen == [("static", "none"), ("static", "dual"), ("factor", "none"), ("factor", "dual")]


def test_tasks_are_measured_one_by_one_and_together(opened):
    asked = questions(["lists", "copy:length=4", "latin_square"], 2, 0)
    pair = pairs(["static", "factor"], ["dual"])
    cells = compare.run(opened, asked, pair, Console(file=io.StringIO()), **SIZES)
    assert [c.task for c in cells] == [t for t in ("lists", "copy:length=4", "latin_square", "all") for _ in pair]
    alone = measure(opened, asked, "factor", "dual", **SIZES)
    got, want = cells[-1].record(), alone.record()
    timed = {"seconds", "decode_seconds", "draft_seconds", "draft_share", "time_to_first_token"}
    timed |= {"tokens_per_second", "decode_tokens_per_second"}
    assert {n: v for n, v in got.items() if n not in timed | {"task"}} == pytest.approx(
        {n: v for n, v in want.items() if n not in timed | {"task"}}
    )
    own = cells[1:-1:2]
    assert got["seconds"] == sum(c.totals.seconds for c in own) and got["task"] == "all"
    assert got["kv_bytes"] == max(c.totals.kv_bytes for c in own)


def test_the_table_has_a_part_for_each_task_with_a_baseline_of_its_own():
    cells = [cell(speed=80.0), cell("factor", speed=200.0)]
    lines = printed(
        120, [*cells, *(replace(c, task="copy", totals=cell(speed=50.0).totals) for c in cells)]
    ).splitlines()
    words = [line.split() for line in lines[3:] if line.strip()]
    assert [w[0] for w in words] == ["lists", "static", "factor", "copy", "static", "factor"]
    assert [w[-2:] for w in words if len(w) > 1] == [["80", "1.0"], ["200", "2.5"], ["50", "1.0"], ["50", "1.0"]]


def test_the_area_of_each_task_is_told():
    cells = [cell(right=30, rate=1.0), cell("factor", right=30, rate=2.0)]
    assert compare.areas([*cells, replace(cells[0], task="copy")]) == {"lists": 120.0, "copy": 60.0}


def test_a_terminal_gets_a_bar(opened):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    compare.run(opened, questions(["lists"], 2, 0), [("static", "none")], console, **SIZES)
    assert "lists, static, none: 1" in console.file.getvalue() and "2/2" in console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits(width):
    lines = printed(width).splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.startswith("static") and "70.0 [56-81]" in line and " 257.0 " in line for line in lines)
    assert "…" not in printed(width)


def test_the_share_that_a_cache_spared_is_told_and_that_one_was_never_read():
    full = cell(cache="dual")
    filled = replace(full, totals=replace(full.totals, columns=full.totals.rows))
    kept = [line.split()[7] for line in printed(120, [cell(), cell(cache="dual"), filled]).splitlines()[3:6]]
    assert kept == ["-", "62", "none"]


def test_speed_is_told_beside_the_first_rows():
    text = printed(120, [cell(speed=80.0), cell("factor", speed=200.0)])
    first, second = (line.split()[-2:] for line in text.splitlines()[3:5])
    assert first == ["80", "1.0"] and second == ["200", "2.5"]
    assert printed(120, [cell(speed=1e-9)])


def test_the_note_tells_the_conditions():
    told = note(CONDITIONS)
    for fact in (
        "tiny-llada",
        "cpu",
        "float32",
        "2 threads",
        "torch 2.0",
        "n = 50",
        "math, lists",
        "seed 0",
        "64",
        "16",
    ):
        assert fact in told


def test_the_csv_has_every_figure_and_condition(tmp_path):
    to_csv(grid(), CONDITIONS, tmp_path / "grid.csv")
    rows = read(tmp_path / "grid.csv")
    assert len(rows) == 9 and {row["tasks"] for row in rows} == {"math lists"}
    assert rows[3]["method"] == "threshold:threshold=0.8" and float(rows[3]["tokens_per_forward"]) == pytest.approx(
        2.6, rel=1e-3
    )
    assert set(DERIVED) <= set(rows[0])
    assert rows[0]["torch"] == "2.0" and rows[0]["gen_length"] == "64"


def test_the_picture_has_a_row_for_each_task_and_a_colour_for_each_sampler(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(compare, "draw", lambda *given: drawn.append(given))
    cells = [*grid(), *(replace(c, task="math") for c in grid()[:2])]
    to_png(cells, CONDITIONS, tmp_path / "grid.png")
    [(tasks, told, path)] = drawn
    assert {task: len(dots) for task, dots in tasks.items()} == {"lists": 9, "math": 2}
    assert told == note(CONDITIONS) and path == tmp_path / "grid.png"
    first, second = tasks["math"]
    assert (first.label, second.label, first.colour, second.colour) == ("none", "prefix", "static", "static")
    assert (second.accuracy, second.low, second.tokens_per_second) == (cells[1].accuracy, cells[1].interval[0], 100.0)


def test_with_one_cache_the_points_are_labelled_with_their_samplers(tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(compare, "draw", lambda tasks, *_: labels.extend(dot.label for dot in tasks["lists"]))
    to_png([cell("static"), cell("threshold:threshold=0.8")], CONDITIONS, tmp_path / "grid.png")
    assert labels == ["static", "threshold: threshold=0.8"]


def test_lists_of_names_keep_their_options_together():
    assert listed("static,threshold:threshold=0.8, factor") == ["static", "threshold:threshold=0.8", "factor"]
    assert listed("a:x=1,y=2,b,b") == ["a:x=1,y=2", "b"]
    with pytest.raises(DllmError, match="empty name"):
        listed("a,,b")


def test_the_command_prints_a_table_and_writes_both_files(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    files = ["--csv", str(tmp_path / "new" / "a.csv"), "--png", str(tmp_path / "new" / "a.png")]
    arguments = ["--model", folder, "--task", "lists,math", "--n", "2", "--samplers", "static,factor:factor=0.5"]
    arguments += ["--caches", "none,dual", "--gen-length", "8", "--block-length", "4", "--device", "cpu"]
    assert main(["compare", *arguments, *files]) == 0
    out, err = capsys.readouterr()
    assert "factor: factor=0.5" in out and "n = 4 test problems of lists, math" in " ".join(out.split()) and err == ""
    assert "AUP of the front (accuracy in % under tokens per forward): lists " in out
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.csv", "a.png"]
    assert main(["compare", *arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["task"] for row in told["rows"]] == [task for task in ("lists", "math", "all") for _ in range(4)]
    assert (
        set(told["aup"]) == {"lists", "math", "all"}
        and told["conditions"]["seed"] == 0
        and told["conditions"]["gen_length"] == 8
    )
    rows = read(tmp_path / "new" / "a.csv")
    same = ("task", "model", "method", "cache", "right", "nfe", "rows", "generated_tokens")
    assert [[row[k] for k in same] for row in rows] == [[str(row[k]) for k in same] for row in told["rows"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "maths"], "unknown task 'maths'; did you mean 'math'?"),
        (["--task", "copy,shufle:length=3"], "unknown task 'shufle'; did you mean 'shuffle'?"),
        (["--task", "copy:lenght=3"], "unknown option of task copy 'lenght'; did you mean 'length'?"),
        (["--samplers", "static,treshold"], "unknown sampler 'treshold'; did you mean 'threshold'?"),
        (["--caches", "none,duel"], "unknown cache 'duel'; did you mean 'dual'?"),
        (["--n", "0"], "n=0 problems"),
        (["--n", "many"], "n=many is not"),
        (["--csv", "/proc/no/grid.csv"], "/proc/no/grid.csv cannot be written"),
        (["--png", "/"], "/ cannot be written (it is a folder)"),
        (["--gen_length", "0"], "gen_length=0 must be"),
        (["--threshold", "0.8"], "unknown option '--threshold'"),
        (["--drafters", "ngrm"], "unknown drafter 'ngrm'; did you mean 'ngram'?"),
        (["--verify", "rato"], "unknown accept rule 'rato'; did you mean 'ratio'?"),
        (["extra"], "unexpected argument 'extra'"),
    ],
)
def test_what_cannot_be_is_told_before_the_model_is_opened(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(dllm, "load", lambda *_a, **_k: pytest.fail("opened"))
    assert main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dllm: error: ") and message in err and err.count("\n") == 1


def test_a_model_without_tokenizer_cannot_be_asked(tmp_path, capsys):
    folder = checkpoints.save(tmp_path, tokenizer=False)
    target = tmp_path / "a.csv"
    target.write_text("old")
    assert main(["compare", "--model", folder, "--n", "1", "--csv", str(target)]) == 2
    assert "no tokenizer" in capsys.readouterr().err
    assert target.read_text() == "old" and not list(tmp_path.glob(".*"))


def test_pairs_that_cannot_be_are_left_out_and_told(model):
    kept, told = legal(model, pairs(["static", "random"], ["none", "dkv-greedy"]))
    assert kept == [("static", "none"), ("random", "none"), ("random", "dkv-greedy")]
    assert len(told) == 1 and told[0].startswith("static with dkv-greedy is left out: GreedyCache")
    assert legal(model, [("static", "dual"), ("klass", "dual")], drafts=2)[0] == [("static", "dual")]
    with pytest.raises(DllmError, match="must know which columns come next"):
        legal(model, pairs(["static", "threshold"], ["dkv-greedy"]))


# Autoregressive models beside those that fill masks


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """The folder of a causal model."""
    return checkpoints.save(tmp_path_factory.mktemp("causal"), config=checkpoints.CAUSAL)


def test_causal_models_stand_in_the_same_table(folder, causal, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["--models", f"{folder},{causal}", "--task", "lists,math", "--n", "2", "--samplers", "static"]
    arguments += ["--caches", "dual", "--drafters", "ngram:k=3,suffix", "--gen_length", "8", "--dtype", "float64"]
    assert main(["compare", *arguments, "--csv", str(tmp_path / "a.csv"), "--png", str(tmp_path / "a.png")]) == 0
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines()[:20])) <= 120 and "loss-" in out and err == ""
    rows = read(tmp_path / "a.csv")
    methods = ["static", "ar", "ar+ngram:k=3", "ar+suffix"]
    assert [r["method"] for r in rows] == 3 * methods and [r["task"] for r in rows[::4]] == ["lists", "math", "all"]
    assert {r["model"] for r in rows if r["method"] == "static"} == {folder} and len({r["model"] for r in rows}) == 2
    plain, *drafted = [r for r in rows if r["task"] == "all" and r["model"] == causal]
    assert float(plain["tokens_per_forward"]) == 1.0 == float(plain["commit_width"]) and plain["lossless"] == "exact"
    for r in drafted:
        assert (r["right"], r["generated_tokens"]) == (plain["right"], plain["generated_tokens"])
        assert float(r["tokens_per_forward"]) >= 1.0 and float(r["drafted"]) > 0


def test_settings_of_masks_do_not_reach_causal_models(causal):
    opened, asked = dllm.load(causal, dtype="float64"), questions(["lists"], 1, 0)
    settings = {"gen_length": 6, "steps": 2, "cfg_scale": 1.0, "drafts": 4, "cache": "-"}
    got = measure(opened, asked, "ar+ngram", verify="typical", **settings)
    assert got.lossless == "no" and got.totals.generated_tokens <= 6


def test_a_drafter_that_cannot_be_is_left_out_and_told(causal):
    opened = dllm.load(causal, dtype="float64")
    chosen = compare.drafted(["ngram", "model:model=tiny-llada"])
    kept, told = legal(opened, chosen, gen_length=4)
    assert kept == [("ar", "-"), ("ar+ngram", "-")] and len(told) == 1 and "is left out" in told[0]


def test_a_lossless_drafter_that_changes_the_accuracy_is_told():
    plain, same = cell("ar", "-", lossless="exact"), cell("ar+ngram", "-", lossless="exact")
    other, lossy = cell("ar+suffix", "-", right=29, lossless="exact"), cell("ar+stand", "-", right=9)
    [line] = compare.unequal([plain, same, other, lossy])
    assert line.startswith("ar+suffix of m has 29 right answers on lists, and ar 30")
