"""GSM8K's prompts and scores against lm-evaluation-harness's own, on invented problems."""

import hashlib
import json
from functools import partial

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import dllm
from dllm.errors import DllmError
from dllm.evaluate.answers import Method
from dllm.evaluate.data import installed
from dllm.evaluate.tasks import make
from dllm.evaluate.tasks.gsm8k import (
    ACCURACY,
    FLEXIBLE,
    HASHES,
    NUMBERS,
    PROTOCOLS,
    STRICT,
    THE_ANSWER,
    extract,
    last_number,
    same,
    same_number,
)  # fmt: skip
from dllm.generation import rendered

PLACES = ("shelf", "garden", "boat", "attic", "market", "harbour", "tower", "meadow", "cellar", "bridge")


def invented(n, first):
    """Rows that look like GSM8K's."""
    sums = [(i, 3 * i + 1) for i in range(first, first + n)]
    question = "The {} holds {} pots; {} more come, each for $1,000.  How many are there?"
    answer = "There are {} + {} = <<{}+{}={}>>{:,} pots.\n#### {:,}"
    return [
        {"question": question.format(PLACES[a % 10], a, b), "answer": answer.format(a, b, a, b, a + b, a + b, a + b)}
        for a, b in sums
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Test rows, training rows, and examples as OpenCompass's config has them."""
    folder = tmp_path_factory.mktemp("gsm8k")
    turns = []
    for row in invented(4, 700):
        turns += [("HUMAN", f"Question: {row['question']}\nLet's think step by step\nAnswer:"), ("BOT", "So 7.\n")]
    turns.append(("HUMAN", "Question: {question}\nLet's think step by step\nAnswer:"))
    calls = ",\n".join(f"dict(role={role!r}, prompt={text!r})" for role, text in turns)
    config = folder / "config.py"
    config.write_text(
        f"import nowhere\nx = dict(template=dict(round=[\n# dict(role='HUMAN', prompt='')\n{calls}\n]))\n"
    )
    return {
        "test": write(folder / "test.jsonl", invented(3, 400)),
        "train": write(folder / "train.jsonl", invented(30, 100)),
        "config": str(config),
    }


def ours(protocol, files):
    shots = {"P1": "train", "P5": "train", "P4": "config", "P3-base": "cot"}.get(protocol)
    return make("gsm8k", protocol=protocol, data=files["test"], shots=files.get(shots))


@pytest.fixture(scope="module")
def harness():
    """The function that makes lm-evaluation-harness's task from its own file, on rows of ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        from datasets import Dataset
        from lm_eval.api.task import ConfigurableTask

        def make_task(name, rows):
            path = installed("lm_eval", f"tasks/gsm8k/{name}.yaml")
            config, splits = yaml.safe_load(path.read_text()), {k: Dataset.from_list(v) for k, v in rows.items()}
            task = ConfigurableTask(config=config | {"custom_dataset": lambda **_: splits})
            task.set_fewshot_seed(1234)
            return task

        yield make_task


@pytest.mark.parametrize(
    ("protocol", "name", "shots"),
    [("P1", "gsm8k", 5), ("P5", "gsm8k", 5), ("P2", "gsm8k-cot-zeroshot", 0), ("P3", "gsm8k-cot", 0),
     ("P3-base", "gsm8k-cot", 8)],
)  # fmt: skip
def test_prompts_are_those_of_the_harness(protocol, name, shots, files, harness):
    task, tokenizer = ours(protocol, files), dllm.load("tiny-llada").tokenizer
    rows = {split: invented(n, first) for split, n, first in (("test", 3, 400), ("train", 30, 100))}
    theirs, template = harness(name, rows), partial(tokenizer.apply_chat_template, tokenize=False)
    for question, row in zip(task.questions(), rows["test"], strict=True):
        want = theirs.fewshot_context(row, shots, apply_chat_template=task.chat, chat_template=template)
        assert rendered(tokenizer, question.prompt, task.chat)[0] == want
        assert question.record == row and question.target.endswith(theirs.doc_to_target(row))
    assert (task.n_shots, list(task.stop)) == (shots, theirs.config.generation_kwargs["until"])
    patterns = {f.name: f.filters[0]().regex_pattern for f in theirs._filters}
    assert patterns == {"strict-match": task.strict, "flexible-extract": NUMBERS}


@pytest.mark.parametrize(
    ("protocol", "digest"),
    [("P1", "d7512e45b904"), ("P2", "ce7cf54547bc"), ("P3", "052cd9403e0d"),
     ("P3-base", "c48e1901d8d8"), ("P4", "6d5aeed972b0"), ("P5", "e5a039a58a46")],
)  # fmt: skip
def test_the_wording_of_prompts_is_what_it_was(protocol, digest, files, tmp_path):
    """Of three whole prompts, the chat template's part included; who changes one on purpose changes the hash."""
    samples = [{"question": row["question"], "target": "So 7."} for row in invented(8, 900)]
    shots = write(tmp_path / "cot.yaml", [{"fewshot_config": {"samples": samples}}])
    task, tokenizer = ours(protocol, files | {"cot": shots}), dllm.load("tiny-llada").tokenizer
    prompts = [rendered(tokenizer, question.prompt, task.chat)[0] for question in task.questions()]
    assert len(prompts) == 3 and hashlib.sha256("\0".join(prompts).encode()).hexdigest()[:12] == digest, prompts[0]


def test_opencompass_examples_are_turns(files):
    first = ours("P4", files).questions()[0]
    assert [turn["role"] for turn in first.prompt] == ["user", "assistant"] * 4 + ["user"]
    assert (
        first.prompt[0]["content"] == f"Question: {invented(1, 700)[0]['question']}\nLet's think step by step\nAnswer:"
    )
    assert first.prompt[1]["content"] == "So 7.\n"
    assert first.prompt[-1]["content"] == f"Question: {first.record['question']}\nLet's think step by step\nAnswer:"


@pytest.mark.parametrize(
    ("protocol", "chat", "gen_length", "block_length"),
    [("P1", True, 256, 32), ("P2", True, 256, 32), ("P3", True, 256, 256), ("P3-base", False, 256, 256),
     ("P4", True, 256, 8), ("P5", False, 1024, 1024)],
)  # fmt: skip
def test_lengths_and_template_are_the_protocols(protocol, chat, gen_length, block_length, files):
    method = Method.of(ours(protocol, files))
    got = method.chat, method.settings.gen_length, method.settings.block_length
    assert got == (chat, gen_length, block_length)
    assert Method.of(ours(protocol, files), max_new_tokens=64).settings.gen_length == 64
    assert set(PROTOCOLS) == {"P1", "P2", "P3", "P3-base", "P4", "P5"}


# Scores

NUMBER = st.one_of(st.integers(-9999, 10**7).map(str), st.integers(0, 10**7).map("{:,}".format),
                   st.decimals(-99, 999, places=2).map(str), st.integers(0, 99).map("{}.".format))  # fmt: skip
WORDS = st.sampled_from(["#### ", "####", "The answer is ", "the answer is ", "$", " ", "\n", ".", ",", "..,", "-", "%",
                         "= ", "So he has ", "\\boxed{", "}", "**", "Question:", "é", "½", "٣", "²"])  # fmt: skip
ANSWERS = st.lists(st.one_of(NUMBER, WORDS), max_size=12).map("".join)


@settings(max_examples=600, derandomize=True, deadline=None)
@given(ANSWERS, NUMBER)
def test_extraction_agrees_with_the_harness(answer, target):
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    ignore = [",", "\\$", "(?s).*#### ", "\\.$"]  # as its task has them; the test above reads the patterns from there
    for pattern, which in ((HASHES, 0), (THE_ANSWER, 0), (NUMBERS, -1)):
        [[want]] = RegexFilter(pattern, which).apply([[answer]], [{}])
        assert extract(pattern, answer, which) == want
        for right in (target, f"So it is 7.\n#### {target}", want):
            score = exact_match_hf_evaluate([want], [right], ignore, ignore_case=True)
            assert same(want, right) == bool(score["exact_match"])


@pytest.mark.parametrize(
    ("answer", "flexible", "strict"),
    [
        ("400 + 1201 = 1601 pots.\n#### 1601", 1, 1),
        ("It is $1,601.", 1, 0),
        ("#### 1,601 pots, I think. Or 12?", 0, 1),
        ("#### 1601.00", 0, 0),
        ("", 0, 0),
    ],
)
def test_both_columns_are_scored(answer, flexible, strict, files):
    task = ours("P1", files)
    assert task.metrics == (FLEXIBLE, STRICT)
    score = task.score(task.questions()[0], answer)
    assert (score[FLEXIBLE], score[STRICT]) == (flexible, strict) and score["extracted"] == extract(NUMBERS, answer, -1)


@pytest.mark.parametrize(
    ("answer", "number", "right"),
    [
        ("Then 1601.\n\nQuestion: 3", "1601", 1),
        ("It is 1601.00", "1601.00", 1),
        ("1,601", "601", 0),
        ("none", "NULL", 0),
    ],
)
def test_opencompass_takes_the_last_number(answer, number, right, files):
    task = ours("P4", files)
    score = task.score(task.questions()[0], answer)
    assert task.metrics[0] == ACCURACY and (score[ACCURACY], score["extracted"]) == (right, number)
    assert last_number(answer) == number and same_number(number, "1601") == bool(right)


# Errors


@pytest.mark.parametrize("answer", ["So 7.", "#### 3.5", "#### none", "####7"])
def test_opencompass_needs_a_whole_number_to_compare_with(answer, files, tmp_path):
    data = write(tmp_path / "rows.jsonl", [*invented(2, 400), {"question": "How many?", "answer": answer}])
    with pytest.raises(DllmError, match=r"the answer in row 2 of .*rows.jsonl does not end in '#### ' and a whole"):
        make("gsm8k", protocol="P4", data=data, shots=files["config"])
    assert len(make("gsm8k", protocol="P2", data=data).questions()) == 3


def test_what_cannot_be_is_one_line(files, tmp_path, monkeypatch):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("dict(role='HUMAN', prompt='Hello')")
    (tmp_path / "torn.py").write_text("dict(role=")
    data = {"data": files["test"]}
    cases = [
        ({"protocol": "P9"}, "unknown protocol of gsm8k 'P9'"),
        ({"protocol": "P2", "shots": "x", **data}, "shots='x' is not for protocol P2, which shows no examples"),
        ({"protocol": "P4", "shots": str(wrong), **data}, "does not hold the 4 examples"),
        ({"protocol": "P4", "shots": str(tmp_path / "torn.py"), **data}, "cannot be read as OpenCompass's"),
        ({"protocol": "P3-base", "shots": str(wrong), **data}, "is not lm-evaluation-harness's gsm8k-cot.yaml"),
        ({"allow_code_execution": True}, "is not for the task gsm8k, which takes protocol, data, shots"),
    ]
    for options, message in cases:
        with pytest.raises(DllmError, match=message):
            make("gsm8k", **options)
    with pytest.raises(DllmError, match="which takes no options"):
        make("lists", protocol="P1")
    with pytest.raises(DllmError, match="unknown task 'gsm8'; did you mean 'gsm8k'"):
        make("gsm8")
    monkeypatch.setattr("dllm.evaluate.tasks.shots.installed", lambda *_: None)
    for protocol, message in (("P4", "those of OpenCompass; give --shots"), ("P3-base", "install it with pip install")):
        with pytest.raises(DllmError, match=message):
            make("gsm8k", protocol=protocol, **data)
