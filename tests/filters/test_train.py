"""From prompts to a filter and its report: resumable, the same for any number of processes, whole or not at all."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dllm
from dllm import DllmError
from dllm.cli import main
from dllm.filters import calibrate, report, train
from dllm.filters.fit import Recipe
from dllm.filters.measure import Point, against, pooled

FILES = ("filter.safetensors", "report.md", "report.png")


def again(model, prompts, decoding, made, folder, **more):
    recipe = Recipe(**made.facts["recipe"] | {"features": made.features})
    ask = {"name": "tiny", "recipe": recipe, "decoding": decoding, "alpha": 0.9, "shard": 16}
    return train.train(model, prompts, folder, **ask | more)


def test_the_same_command_gives_the_same_bytes_however_it_is_shared(model, prompts, decoding, trained, tmp_path):
    folder, made = trained
    for rank in (1, 0):
        found = again(model, prompts, decoding, made, tmp_path, rank=rank, world_size=2)
        assert (found is None) == (rank == 1)
    assert (tmp_path / FILES[0]).read_bytes() == (folder / FILES[0]).read_bytes()


def test_what_is_finished_is_not_repeated(model, prompts, decoding, trained, monkeypatch):
    folder, made = trained
    before = (folder / FILES[0]).read_bytes()
    monkeypatch.setattr(type(decoding), "run", lambda *_: pytest.fail("a prompt was decoded again"))
    again(model, prompts, decoding, made, folder)
    assert (folder / FILES[0]).read_bytes() == before


def test_calibration_decodes_prompts_that_nothing_was_fitted_to_with_the_threshold(model, prompts, trained):
    _, made = trained
    told = made.facts["calibration"]
    ask = {"gen_length": 6, "block_length": 4, "seed": 0}
    plain, done = (dllm.generate(model, prompts[20:], s, "none", **ask) for s in ("static", learned(trained)))
    losses = [calibrate.wrong(a, b, {38}) for a, b in zip(done.completions, plain.completions, strict=True)]
    [chosen] = [t for t in told["tested"] if t["threshold"] == made.threshold]
    assert told["n"] == 20 and chosen["risk"] == pytest.approx(sum(losses) / 20)
    assert made.facts["ceiling"]["oracle"] >= made.facts["ceiling"]["static"]


def learned(trained):
    return f"learned:filter={trained[0]}"


@pytest.mark.parametrize("broken", ["nan", "one class", "too few"])
def test_an_error_leaves_the_filter_that_is_there(model, prompts, decoding, trained, tmp_path, monkeypatch, broken):
    (tmp_path / FILES[0]).write_text("old")
    _, made = trained
    real = train.Traces.read.__func__

    def read(cls, paths):
        found = real(cls, paths)
        if broken == "nan":
            return replace(found, features=found.features * torch.nan)
        return replace(found, right=torch.ones_like(found.right))

    monkeypatch.setattr(train.Traces, "read", classmethod(read))
    with pytest.raises(DllmError, match=r"not finite|one class|too few"):
        again(model, prompts[: 10 if broken == "too few" else 40], decoding, made, tmp_path)
    assert (tmp_path / FILES[0]).read_text() == "old"


def test_shards_of_other_prompts_are_refused(model, prompts, decoding, trained, tmp_path):
    again(model, prompts, decoding, trained[1], tmp_path)
    (tmp_path / "traces" / "traces-00000.safetensors").write_bytes(
        (tmp_path / "traces" / "traces-00002.safetensors").read_bytes()
    )
    with pytest.raises(DllmError, match="holds 32 of 40 prompts; remove its shards"):
        again(model, prompts, decoding, trained[1], tmp_path)


# The report


def test_two_accuracies_at_one_speed_are_compared_question_by_question():
    slow, fast = Point("a", (1, 1, 1, 0), (0.0,) * 4, 8, 8), Point("b", (1, 0, 0, 0), (0.0,) * 4, 4, 8)
    between = Point("c", (1, 1, 0, 1), (0.0,) * 4, 16, 24)  # 1.5 tokens a forward
    gain, (low, high) = against(between, [fast, slow])
    assert gain == pytest.approx(0.75 - 0.5) and low <= gain <= high
    assert against(replace(between, nfe=1), [fast, slow])[0] == pytest.approx(0.75 - 0.25)  # faster than all
    assert against(replace(between, nfe=99), [fast, slow])[0] == pytest.approx(0.75 - 0.75)  # slower than all
    assert against(slow, [fast, slow]) == (0, (0, 0))


def test_points_of_several_tasks_are_of_all_questions():
    one = {"a": Point("a", (1,), (0.5,), 2, 3)}
    assert pooled([one, one])["a"] == Point("a", (1, 1), (0.5, 0.5), 4, 6)
    assert pooled([one, one])["a"].risk == 0.5


def test_prompts_of_one_source_only(capsys):
    assert main(["train-filter", "--task", "lists", "--dataset", "a/b"]) == 2
    assert "--task and --dataset both name prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--n", "0"], "n=0 prompts are none"),
        (["--prompts", "empty.txt"], "has no prompts in it"),
        (["--features", "colour"], "features colour: give each once"),
        (["--net", "tree"], "unknown network 'tree'"),
        (["--alpha", "0"], "alpha=0.0 must lie between 0 and 1"),
        (["--measure", "list"], "unknown task 'list'"),
        (["--limit", "0", "--measure", "lists"], "limit=0 must be a whole number"),
    ],
)
def test_a_wrong_word_is_told_before_anything_is_decoded(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    assert main(["train-filter", "--output", "out", *words]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_command_makes_a_filter_and_a_report(tmp_path, capsys):
    small = ["--n", "20", "--task", "lists", "--gen-length", "8", "--block-length", "4", "--alpha", "0.9"]
    words = ["train-filter", *small, "--output", str(tmp_path), "--measure", "lists,drill", "--limit", "2"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["filter"] == str(tmp_path / FILES[0]) and told["prompts"]["tasks"] == ["lists"]
    assert all((tmp_path / name).stat().st_size for name in FILES)
    page = (tmp_path / "report.md").read_text()
    assert told["calibration"]["guarantee"] in page and "the ceiling" in page
    assert "### lists, trained on, n = 2" in page and "### drill, not trained on, n = 2" in page
    assert page.count("`oracle`") == 2 and f"`learned:threshold={told['threshold']:g}` *" in page
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    assert main(words) == 0
    assert told["calibration"]["guarantee"] in capsys.readouterr().out
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before


def test_the_pages_of_all_tasks_together_tell_what_was_not_trained_on():
    own = {"static": Point("static", (1,), (0.0,), 1, 1)}
    found = report.grouped({"a": own, "b": own, "c": own, "d": own}, ["a", "b"])
    assert [*found] == ["a", "b", "c", "d", "all it was trained on", "all it was not trained on"]


def test_the_script_is_the_command(monkeypatch):
    asked = []
    monkeypatch.setattr("dllm.cli.main", lambda words: asked.extend(words) or 0)
    monkeypatch.setattr(sys, "argv", ["script", "--n", "30"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "train_learn2pd.py"), run_name="__main__")
    assert left.value.code == 0 and asked == ["train-filter", "--n", "30"]
