import argparse
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import checkpoints
import dllm
from dllm import arguments, cli
from dllm.cli import main
from dllm.live import printable
from dllm.settings import ALIASES, NAMES, Settings

QUESTION = "Ida has 42 tulips."
SHORT = {"gen_length": 8, "block_length": 4}
SHORT_OPTIONS = ["--gen_length", "8", "--block_length", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A model without tokenizer."""
    return checkpoints.save(tmp_path_factory.mktemp("plain"), tokenizer=False)


@pytest.fixture(scope="module")
def opened(folder):
    return dllm.load(folder)


@pytest.fixture
def ask(folder, capsys):
    """Run dllm generate on the folder; returns what it printed as JSON."""

    def run(*options):
        assert main(["generate", "--model", folder, *SHORT_OPTIONS, "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def refused(capsys, *argv):
    """The one line on stderr with which a command ends."""
    assert main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dllm: error: ") and err.count("\n") == 1
    return err


# What generate prints


def test_a_pipe_gets_the_answers_and_stderr_the_figures(folder, opened, capsys):
    assert main(["generate", QUESTION, "Two", "--model", folder, *SHORT_OPTIONS]) == 0
    out, err = capsys.readouterr()
    done = dllm.generate(opened, [QUESTION, "Two"], **SHORT)
    assert out == "".join(f"{text}\n" for text in done.texts)
    assert err.startswith(f"{done.forwards} forwards, {int(done.answer_tokens.sum())} answer tokens, ")
    assert "tokens per forward" in err and "tokens/s" in err and err.count("\n") == 1


def test_json_is_what_the_library_returns(ask, opened):
    got = ask(
        QUESTION, "Two", "--sampler", "threshold:threshold=0.3", "--cache", "prefix:refresh=2", "--num_samples", "2"
    )
    done = dllm.generate(
        opened, [QUESTION, "Two"], "threshold:threshold=0.3", "prefix:refresh=2", num_samples=2, **SHORT
    )
    assert got["tokens"] == done.completions and got["text"] == done.texts and got["nfe"] == done.nfe.tolist()
    assert got["forwards"] == done.forwards and got["tokens_per_forward"] == done.tokens_per_forward
    assert got["answer_tokens"] == done.answer_tokens.tolist() and got["seconds"] > 0


def test_json_tells_every_setting(ask, folder):
    told = ask(QUESTION, "--factor", "0.7", "--stop", "a", "--stop", "b")["settings"]
    assert set(NAMES) <= set(told) and told["stop"] == ["a", "b"] and told["gen_length"] == 8
    assert told["sampler"] == {"name": "factor", "factor": 0.7} and told["cache"]["name"] == "dual"
    nested = ask(QUESTION, "--sampler", "prophet:base=sliding:base=static", "--constraints", "2:a|3:b")["settings"]
    assert nested["sampler"]["base"] == {"name": "sliding", "base": {"name": "static"}, "window": 16}
    assert nested["constraints"] == "2:a|3:b"
    never = ask(QUESTION, "--thresholds", "inf/inf/inf", "--base", "static")["settings"]["sampler"]
    assert never["thresholds"] == ["inf", "inf", "inf"] and never["base"] == {"name": "static"}
    assert told["model"] == folder and (told["device"], told["dtype"]) == ("cpu", "float32")
    assert told["versions"]["torch"] == torch.__version__ and told["threads"] == 1


def test_the_seed_that_was_drawn_repeats_the_answer(ask):
    first = ask(QUESTION, "--temperature", "1")
    again = ask(QUESTION, "--temperature", "1", "--seed", str(first["settings"]["seed"]))
    assert again["tokens"] == first["tokens"]


def test_the_seed_is_told_where_something_is_drawn(folder, capsys):
    for options, drawn in ([], False), (["--temperature", "1"], True), (["--sampler", "random"], True):
        main(["generate", QUESTION, "--model", folder, *SHORT_OPTIONS, "--seed", "77", *options])
        assert ("seed 77" in capsys.readouterr().err) == drawn


def test_token_ids_for_a_model_without_tokenizer(plain, capsys):
    argv = ["generate", "--prompt_ids", "5 6 7", "--prompt-ids", "[8,9]", "--model", plain, *SHORT_OPTIONS]
    assert main(argv) == 0
    done = dllm.generate(dllm.load(plain), [[5, 6, 7], [8, 9]], **SHORT)
    assert capsys.readouterr().out == "".join(" ".join(map(str, ids)) + "\n" for ids in done.completions)
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] is None


def test_standard_input_is_one_prompt(ask, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\nAnd so on.\n"))
    assert ask("-")["tokens"] == ask(f"{QUESTION}\nAnd so on.")["tokens"]


def test_raw_text_and_chat_differ(ask, opened):
    raw = dllm.generate(opened, QUESTION, chat=False, **SHORT).completions
    assert ask(QUESTION, "--no_chat")["tokens"] == raw != ask(QUESTION)["tokens"]


def test_the_trace_holds_every_change(ask, tmp_path):
    done = ask(QUESTION, "--trace", str(tmp_path / "a" / "trace.jsonl"), "--no-eos-early-stop")
    header, *changes = [json.loads(line) for line in (tmp_path / "a" / "trace.jsonl").read_text().splitlines()]
    assert header["requests"][0]["answer"] == done["tokens"][0] and header["settings"] == done["settings"]
    assert [c["token"] for c in sorted(changes, key=lambda c: c["column"])] == done["tokens"][0]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["trace.jsonl"]


def test_play_makes_a_page_of_traces(ask, tmp_path, capsys):
    files = [str(tmp_path / f"{name}.jsonl") for name in ("static", "factor")]
    for file in files:
        ask(QUESTION, "Another one", "--trace", file)
    page = tmp_path / "new" / "page.html"
    assert main(["play", *files, "--html", str(page), "--request", "1"]) == 0
    assert capsys.readouterr().out == f"{page}\n" and "Another one" in (made := page.read_text(encoding="utf-8"))
    assert QUESTION not in made
    assert "request=2 is not in the trace; it has 0 to 1" in refused(capsys, "play", files[0], "--request", "2")


def test_a_prompt_may_stand_anywhere():
    for argv in (
        ["a", "--steps", "3", "b"],
        ["--steps", "3", "a", "b"],
        ["a", "b", "--steps=3"],
        ["--steps", "3", "--", "a", "b"],
    ):
        assert arguments.read(["generate", *argv]).prompt == ["a", "b"]
    assert arguments.read(["generate", "--", "--steps"]).prompt == ["--steps"]
    assert arguments.read(["generate", "-5 + 3", "--of two words", "-"]).prompt == ["-5 + 3", "--of two words", "-"]


# Options


def test_options_are_the_fields_of_settings():
    usual = arguments.read(["generate", "x"])
    assert arguments.settings_of(usual) == {name: getattr(Settings(), name) for name in NAMES} | {"stop": []}
    argv = [
        "--gen_length=5",
        "--block_length=2",
        "--steps=3",
        "--temperature=0.5",
        "--top_p=0.9",
        "--top_k=3",
        "--cfg_scale=1",
        "--seed=4",
        "--mask_id=7",
    ]
    argv += [
        "--no_eos_early_stop",
        "--eotp=0.8",
        "--logits_eos_inf",
        "--stop=s",
        "--num_samples=2",
        "--drafts=4",
        "--eager",
        "--batch_size=9",
        "--no_graphs",
        "--deterministic",
    ]
    given = arguments.settings_of(arguments.read(["generate", *argv]))
    first = [5, 2, 3, 0.5, 0.9, 3, 1.0, 4, 7, False, 0.8, True, False]
    assert list(given.values()) == [*first, ["s"], 2, 4, True, 9, False, True]
    assert [type(given[n]) for n in ("gen_length", "temperature", "seed")] == [int, float, int]


def test_hyphens_and_names_of_other_projects_are_understood():
    for name in ("gen_length", "gen-length", *(also for also, ours in ALIASES.items() if ours == "gen_length")):
        for argv in ([f"--{name}", "7"], [f"--{name}=7"], [f"--{name.replace('_', '-')}", "7"]):
            assert arguments.settings_of(arguments.read(["generate", *argv]))["gen_length"] == 7
    assert arguments.read(["generate", "--alg", "factor"]).sampler == "factor"
    assert arguments.read(["generate", "--no-chat", "--prompt-ids=1 2"]).prompt_ids == ["1 2"]
    assert arguments.read(["compare", "--tasks", "lists"]).task == "lists"


def test_none_means_no_value():
    assert arguments.settings_of(arguments.read(["generate", "--seed", "none", "--steps=None"]))["seed"] is None


@pytest.mark.parametrize(
    ("argv", "sampler"),
    [
        ([], "threshold"),
        (["--threshold", "0.8"], "threshold:threshold=0.8"),
        (["--confidence-threshold", "0.8"], "threshold:threshold=0.8"),
        (["--factor=1.5"], "factor:factor=1.5"),
        (["--sampler", "factor", "--factor", "2"], "factor:factor=2"),
        (["--remasking", "random"], "random"),
    ],
)
def test_options_of_samplers_choose_their_sampler(folder, capsys, argv, sampler):
    assert main(["generate", "a", "--model", str(folder), "--gen_length", "4", "--json", *argv]) == 0
    used = json.loads(capsys.readouterr().out)["settings"]["sampler"]
    made = dllm.samplers.make(sampler)
    assert used == {"name": sampler.partition(":")[0], **vars(made)}


def test_every_option_has_a_help_and_every_field_a_docstring(capsys):
    for command in ("generate", "compare", "eval", "doctor"):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
        assert "--gen_length INT" in capsys.readouterr().out
    told = arguments.docs(Settings)
    assert all(told[f.name] for f in fields(Settings) if f.init)
    for parser in arguments.build()[1].values():
        hidden = [a for a in parser._actions if not a.help or a.help is argparse.SUPPRESS]
        assert {a.option_strings[0] for a in hidden} <= {
            "--no_eos_early_stop",
            "--no_eager",
            "--no_graphs",
            "--no_deterministic",
            "--no_logits_eos_inf",
            "--no_confidence_eos_eot_inf",
        }


def test_the_version_and_a_bare_command(capsys):
    for argv, text in (["--version"], f"dllm {dllm.__version__}\n"), ([], "usage: dllm"):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 0 and capsys.readouterr().out.startswith(text)


# Errors


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["genrate"], "unknown command 'genrate'; did you mean 'generate'?"),
        (["generate", "x", "--gen_lenght", "5"], "unknown option '--gen_lenght'; did you mean '--gen_length'?"),
        (["generate", "x", "--gen", "5"], "unknown option '--gen'"),
        (["generate", "x", "-q"], "unknown option '-q'"),
        (["--verbose"], "unknown option '--verbose'"),
        (["generate", "x", "--gen_length"], "expected one argument"),
        (["generate", "x", "--gen_length", "0"], "gen_length=0 must be a whole number of at least 1"),
        (["generate", "x", "--gen_length", "-5"], "gen_length=-5 must be"),
        (["generate", "x", "--gen_length", "1.5"], "gen_length=1.5 is not of type int"),
        (["generate", "x", "--temperature", "nan"], "temperature=nan must be"),
        (["generate", "x", "--pace", "slow"], "pace=slow is not of type float"),
        (["generate", "x", "--sampler", "treshold"], "unknown sampler 'treshold'; did you mean 'threshold'?"),
        (["generate", "x", "--sampler", "threshold:treshold=1"], "unknown option of sampler threshold 'treshold'"),
        (["generate", "x", "--threshold", "1.5"], "threshold=1.5 is not a probability"),
        (
            ["generate", "x", "--threshold", "0.5", "--sampler", "static"],
            "unknown option of sampler static 'threshold'",
        ),
        (["generate", "x", "--cache", "duel"], "unknown cache 'duel'; did you mean 'dual'?"),
        (["generate", "x", "--remasking", "low"], "invalid choice: 'low'"),
        (["generate"], "no prompt was given"),
        (["generate", "--prompt_ids", "1 two"], "--prompt_ids '1 two' is no list of token ids"),
        (["generate", "--prompt_ids", ""], "is no list of token ids"),
        (["generate", "x", "--trace", "/proc/x/t"], "/proc/x/t cannot be written"),
        (["play"], "the following arguments are required: FILE"),
        (["play", "/none"], "No such file or directory: '/none'"),
        (["play", __file__], "test_cli.py is no trace"),
        (["doctor", "x"], "unexpected argument 'x'"),
        (["eval", "--task", "gsm8"], "unknown task 'gsm8'; did you mean 'gsm8k'?"),
        (["eval", "--task", "lists", "--limit", "few"], "limit=few is not of type int"),
        (["eval", "--task", "lists", "--gen_length", "0"], "gen_length=0 must be a whole number"),
        (["eval", "--task", "lists", "--protocol", "P1"], "protocol='P1' is not for the task lists"),
        (
            ["eval", "--task", "lists", "--confirm_run_unsafe_code"],
            "allow_code_execution=True is not for the task lists",
        ),
        (["eval", "--data", "nowhere.jsonl"], "the rows of nowhere.jsonl cannot be read"),
        (["report"], "the following arguments are required: RUN"),
    ],
)
def test_what_cannot_be_is_one_line_before_the_model_is_opened(argv, message, capsys, monkeypatch):
    monkeypatch.setattr(dllm, "load", lambda *_a, **_k: pytest.fail("opened"))
    assert message in refused(capsys, *argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x", "--gen_length", "300"], "the model's context is 256"),
        ([" "], "the prompt is empty"),
        (["--prompt_ids", "99999"], "token id 99999 in a prompt is outside the vocabulary"),
        (["x", "--mask_id", "99999"], "mask_id=99999 is outside"),
        (["x", "--dtype", "int8"], "unknown dtype 'int8'"),
        (["x", "--device", "tpu9"], "device='tpu9' cannot be used"),
        (["x", "--remasking", "random", "--sampler", "factor"], "remasking='random' is an order"),
    ],
)
def test_what_the_model_refuses_is_one_line_too(argv, message, folder, capsys, tmp_path):
    target = tmp_path / "trace"
    assert message in refused(capsys, "generate", "--gen_length", "8", *argv, "--model", folder, "--trace", str(target))
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_text_for_a_model_without_tokenizer(plain, capsys):
    assert "this model has no tokenizer" in refused(capsys, "generate", "x", "--model", plain)


@pytest.mark.parametrize("text", ["", "\n", " \n\n"])
def test_empty_standard_input(text, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert "standard input is empty" in refused(capsys, "generate", "-")


def test_standard_input_that_is_not_text(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\xfa"), encoding="utf-8"))
    assert "standard input is not text" in refused(capsys, "generate", "-")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
        (OSError(28, "No space left on device"), 2, "dllm: error: [Errno 28] No space left on device\n"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), 2, "dllm: error: CUDA out of memory. Tried\n"),
    ],
)
def test_what_happens_outside_ends_quietly(error, code, line, capsys, monkeypatch):
    def fail(_options):
        raise error

    monkeypatch.setattr(cli, "doctor", fail)
    assert main(["doctor"]) == code
    assert capsys.readouterr() == ("", line)


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(cli, "doctor", lambda _options: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


# Files


def test_a_file_is_replaced_only_if_all_goes_well(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), cli.replacing(target) as file:  # noqa: PT012  # the file is written inside
        file.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
    with cli.replacing(target) as file:
        assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
        file.write_text("new")
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with cli.replacing(tmp_path / "link") as file:
        file.write_text("text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text"
    with cli.replacing(Path("/dev/null")) as file:
        file.write_text("text")
    assert not Path("/dev/null").is_file()


def test_a_read_only_file_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "access", lambda *_a: False)  # root may write to everything
    with pytest.raises(dllm.DllmError, match="it is read-only"), cli.replacing(tmp_path / "file"):
        pass


# As users run it


def run(*argv, **more):
    return subprocess.run([sys.executable, "-m", "dllm", *argv], capture_output=True, timeout=100, **more)


def test_a_closed_pipe_ends_quietly():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "dllm", "doctor"], stdout=closed, stderr=subprocess.PIPE, timeout=100, check=False
        )
    assert done.returncode == 141 and done.stderr == b""


def test_an_error_has_no_traceback_and_no_usage(folder):
    done = run("generate", "x", "--model", folder, "--gen_length", "0")
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr == b"dllm: error: gen_length=0 must be a whole number of at least 1.\n"


def test_a_terminal_shows_the_canvas_then_the_answer(folder, opened):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    argv = ["generate", QUESTION, "Two", "--model", folder, *SHORT_OPTIONS, "--pace", "0.01"]
    environment = os.environ | {"TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "dllm", *argv], stdout=theirs, stderr=subprocess.PIPE, env=environment
    )
    os.close(theirs)
    written = b""
    while chunk := some(ours):
        written += chunk
    os.close(ours)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()).replace("\r", "")
    done = dllm.generate(opened, [QUESTION, "Two"], **SHORT)
    assert "········" in text and "╭─ 1 of 2 ─" in text and "step 0" in text and f"forwards {done.forwards}" in text
    ending = "".join(f"{i} of 2\n{printable(text)}\n" for i, text in enumerate(done.texts, 1))
    assert ending in text and "tokens per forward" in text.rsplit(ending)[1]


def some(terminal):
    """What a terminal has to read; nothing once the other side is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_constraints_stand_in_the_answer(ask, folder):
    import dllm

    tokenizer = dllm.load(folder, device="cpu").tokenizer
    [given] = [tokenizer(" 5", add_special_tokens=False)["input_ids"]]
    told = ask(QUESTION, "--constraints", "3:5")
    assert told["tokens"][0][3 : 3 + len(given)] == given


@pytest.mark.parametrize("text", ["5", "x:y", "3:", ":a", "3:a|3:b", "-1:a"])
def test_constraints_that_cannot_be_read_are_named(capsys, text):
    assert "is not COLUMN:TEXT" in refused(capsys, "generate", "x", "--constraints=" + text)


def test_verify_tells_what_differs_from_one_token_a_step(folder, capsys):
    argv = ["generate", "a", "b", "--model", str(folder), "--gen_length", "8", "--verify"]
    assert main([*argv, "--drafts", "4", "--eager", "--cache", "none", "--sampler", "static", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verified"] == {"equal": 2, "share": 1.0, "first_difference": [None, None], "forwards": 8}
    assert told["settings"]["drafts"] == 4 and sum(told["nfe"]) < 16
    assert main([*argv, "--sampler", "threshold:threshold=0"]) == 0
    told = capsys.readouterr().err
    assert "of 2 answers equal those of one token a step without a cache (8 forwards)" in told


def test_drafts_that_cannot_be_are_one_line(folder, capsys):
    for options, message in (
        (["--drafts", "0"], "drafts=0 must be a whole number"),
        (["--drafts", "some"], "drafts='some' must be a whole number"),
        (["--sampler", "klass", "--drafts", "2"], "remembers its steps"),
        (["--cache", "dkv", "--drafts", "2"], "keeps what the last step stored"),
        (["--eager"], "has no drafts"),
    ):
        assert main(["generate", "a", "--model", str(folder), "--gen_length", "4", *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


# Causal models


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """The folder of a model that decodes token by token."""
    return checkpoints.save(tmp_path_factory.mktemp("causal"), config=checkpoints.CAUSAL)


def test_the_same_command_decodes_a_causal_model(causal, capsys):
    argv = ["generate", QUESTION, "Two", "--model", causal, "--gen_length", "8", "--dtype", "float64"]
    assert main([*argv, "--draft", "ngram:max_n=2,k=4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    done = dllm.generate_causal(dllm.load(causal, dtype="float64"), [QUESTION, "Two"], gen_length=8)
    assert told["tokens"] == done.completions and told["text"] == done.texts and told["lossless"] == "exact"
    assert told["settings"]["draft"]["k"] == 4 and told["settings"]["verify"] == {"name": "match"}
    assert "steps" not in told["settings"] and told["draft_seconds"] > 0
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out == "".join(f"{text}\n" for text in done.texts) and "1.00 tokens per forward" in err


def test_verify_names_a_rule_or_decodes_again_or_both(causal, capsys):
    def verified(*words):
        return arguments.read(["generate", *words]).verify

    assert verified("x") == [] and verified("x", "--verify") == ["again"] == verified("--verify", "x")
    assert verified("x", "--verify", "match") == verified("--verify=match", "x") == ["match"]
    assert verified("--verify", "typical:epsilon=0.2", "--verify", "x") == ["typical:epsilon=0.2", "again"]
    assert arguments.read(["generate", "--verify", "x"]).prompt == ["x"]
    argv = ["generate", QUESTION, "--model", causal, "--gen_length", "8", "--draft", "suffix", "--dtype", "float64"]
    assert main([*argv, "--verify", "match", "--verify"]) == 0
    assert "1 of 1 answers equal those of one token a forward without drafts" in capsys.readouterr().err


def test_what_is_for_the_other_kind_of_model_is_refused(causal, folder, capsys):
    for options, message in (
        (["--sampler", "static"], "--sampler static does not apply to"),
        (["--cache", "dual"], "--cache dual does not apply to"),
        (["--threshold", "0.9"], "--threshold 0.9 does not apply to"),
        (["--remasking", "random"], "--remasking random does not apply to"),
        (["--constraints", "3:5"], "--constraints 3:5 does not apply to"),
        (["--steps", "4"], "steps=4 is about filling masks"),
        (["--draft", "model"], "the drafter model needs model; give it as model:model=..."),
    ):
        assert message in refused(capsys, "generate", "x", "--model", causal, "--gen_length", "4", *options)
    for options in (["--draft", "ngram"], ["--verify", "ratio"], ["--verify", "ratio", "--verify"]):
        assert "which fills masks; leave it out" in refused(capsys, "generate", "x", "--model", folder, *options)
    assert "unknown accept rule 'rato'" in refused(capsys, "generate", "x", "--verify=rato")
    assert "did you mean 'typical'?" in refused(capsys, "generate", "--verify", "typcal:epsilon=0.2", "x")


def test_eval_asks_a_causal_model_with_drafts(causal, tmp_path, capsys):
    argv = ["eval", "--task", "lists", "--limit", "2", "--model", causal, "--gen_length", "8", "--dtype", "float64"]
    for name, more in (("plain", []), ("drafted", ["--draft", "ngram", "--verify", "match"])):
        assert main([*argv, "--output", str(tmp_path / name), *more]) == 0
    assert main(["report", str(tmp_path / "plain"), str(tmp_path / "drafted"), "--json"]) == 0
    plain, drafted = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert plain["tokens_per_forward"] == 1.0 <= drafted["tokens_per_forward"]
    assert plain["accuracy"] == drafted["accuracy"] and drafted["difference"] == 0
    assert main(["report", str(tmp_path / "drafted")]) == 0
    assert "autoregressive, drafts by ngram (match)" in " ".join(capsys.readouterr().out.split())
    assert "draft='ngram' does not apply" in refused(
        capsys, "eval", "--task", "lists", "--model", "tiny-llada", "--draft", "ngram"
    )
