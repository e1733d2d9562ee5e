"""A file of settings stands in for options that are not given, and never for those that are."""

import json
import re

import pytest

import dllm
from dllm.arguments import read
from dllm.cli import main


@pytest.fixture
def file(tmp_path):
    """A function that writes settings, as dllm tune does, and gives the options to use them."""

    def write(**settings):
        path = tmp_path / "settings.json"
        path.write_text(json.dumps({"settings": settings, "guarantee": "none"}))
        return ["--settings", str(path)]

    return write


def test_what_is_not_given_comes_from_the_file(file):
    options = read(["generate", "Hello", *file(sampler="eb:gamma=0.1", cache="none", gen_length=24)])
    assert (options.sampler, options.cache, options.gen_length) == ("eb:gamma=0.1", "none", 24)
    assert options.prompt == ["Hello"] and options.block_length is None


def test_what_is_given_wins(file):
    given = file(sampler="threshold:threshold=0.9", cache="none", gen_length=24, eos_early_stop=False)
    options = read(["eval", *given, "--gen-length", "256", "--cache=dual", "--eos_early_stop"])
    assert (options.gen_length, options.cache, options.eos_early_stop) == ("256", "dual", True)
    assert read(["generate", "a", *given, "--sampler", "static"]).sampler == "static"


@pytest.mark.parametrize(
    ("in_file", "given", "left"),
    [
        ("threshold:threshold=0.9", ["--threshold", "0.8"], "threshold"),
        ("localleap:threshold=0.9,radius=2", ["--threshold", "0.8"], "localleap:radius=2"),
        ("threshold:threshold=0.9", ["--factor", "1.2"], None),
        ("static", ["--threshold", "0.8"], None),
    ],
)
def test_an_option_of_a_sampler_replaces_the_files_or_its_sampler(file, in_file, given, left):
    assert read(["generate", "a", *file(sampler=in_file), *given]).sampler == left


def test_generate_decodes_with_the_files_settings(file, capsys):
    line = [
        "generate",
        "Copy this list: moon, star",
        "--json",
        *file(sampler="factor:factor=1.5", cache="prefix", gen_length=16),
    ]
    assert main(line) == 0
    used = json.loads(capsys.readouterr().out)["settings"]
    assert used["sampler"]["name"] == "factor" and used["cache"]["name"] == "prefix" and used["gen_length"] == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON object of settings"),
        ("[1]", "is not a JSON object of settings"),
        ('{"settings": 3}', "is not a JSON object of settings"),
        ('{"gen_lenght": 3}', "unknown setting in .*did you mean 'gen_length'"),
        ('{"gen_length": "many"}', "gen_length=many is not of type int"),
        ('{"sampler": "treshold"}', "did you mean 'threshold'"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path, capsys, text, message):
    path = tmp_path / "settings.json"
    if text is not None:
        path.write_text(text)
    assert main(["generate", "a", "--settings", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("dllm: error:") and err.count("\n") == 1
    assert re.search(message, err)


def test_options_of_samplers_are_taken_out_of_a_name():
    assert dllm.samplers.without("threshold:threshold=0.9", ["threshold"]) == "threshold"
    assert dllm.samplers.without("threshold:threshold=0.9", []) == "threshold:threshold=0.9"
    assert dllm.samplers.without("static", ["threshold"]) is None


def test_tune_writes_a_file_that_generate_takes(tmp_path, capsys, monkeypatch):
    from dllm.evaluate.bench import BASELINE, Bench, Cell

    def measure(_bench, candidate, questions):
        return Cell((1,) * len(questions), 10, 10, 2.0 if candidate == BASELINE else 1.0)

    monkeypatch.setattr(Bench, "measure", measure)
    path = tmp_path / "made" / "settings.json"
    line = [
        "tune",
        "--task",
        "lists",
        "--n",
        "120",
        "--lose",
        "5",
        "--samplers",
        "eb:gamma=0.1,static",
        "--caches",
        "none",
    ]
    assert main([*line, "--output", str(path), "--gen_length", "16"]) == 0
    out, err = capsys.readouterr()
    assert "With probability at least 0.9" in out and "eb:gamma=0.1" in out and "searching eb:gamma=0.1 static" in err
    found = json.loads(path.read_text())["settings"]
    assert (found["sampler"], found["cache"], found["gen_length"], found["block_length"]) == (
        "eb:gamma=0.1",
        "none",
        16,
        32,
    )
    assert found["temperature"] == 0 and found["eos_early_stop"] is True, "what is usual too: a protocol may differ"
    assert not {"stop", "num_samples", "seed", "steps"} & found.keys()
    assert main(["generate", "Copy this list: moon, star", "--settings", str(path)]) == 0
    capsys.readouterr()
    assert main([*line, "--output", str(path), "--gen_length", "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())
    assert main([*line, "--output", str(tmp_path / "other.json"), "--lose", "0"]) == 2
    assert "lose=0.0 points cannot be proved" in capsys.readouterr().err and not (tmp_path / "other.json").exists()
