"""Prompts from files, data sets and tasks, and one line where there are none."""

import pytest

from dllm import DllmError
from dllm.evaluate import data
from dllm.filters import prompts


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    assert prompts.of_file(tmp_path / "a.txt") == ["one", " two "]


@pytest.mark.parametrize("text", ["", " \n\n"])
def test_an_empty_file_is_refused(tmp_path, text):
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_text(text)
        with pytest.raises(DllmError, match=r"has no prompts in it|must hold JSON objects"):
            prompts.of_file(tmp_path / name)


def test_a_file_that_is_not_there_or_not_text_is_told(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xfa")
    for name in ("a.txt", "b.txt", "a.csv"):
        with pytest.raises(DllmError, match=r"cannot be read|is none of"):
            prompts.of_file(tmp_path / name)


def test_rows_have_their_prompt_under_a_usual_name(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1, "question": "q"}\n{"id": 2, "question": [1, 2]}\n')
    assert prompts.of_file(tmp_path / "a.jsonl") == ["q", [1, 2]]
    (tmp_path / "a.jsonl").write_text('{"id": 1, "query": "q"}\n')
    with pytest.raises(DllmError, match=r"have id, query, and none of prompt, question"):
        prompts.of_file(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"text": "q"}\n{"text": ""}\n')
    with pytest.raises(DllmError, match=r"row 1 of .* has no 'text'"):
        prompts.of_file(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "want"),
    [("a/b", ("a/b", None, "train")), ("a/b:c", ("a/b", "c", "train")), ("a/b::d", ("a/b", None, "d"))],
)
def test_a_data_set_is_named_with_config_and_split(monkeypatch, name, want):
    monkeypatch.setattr(data, "fetch", lambda *given: [{"prompt": str(given[:3])}])
    assert prompts.of_dataset(name) == [str(want)]
    monkeypatch.setattr(data, "fetch", lambda *_: [])
    with pytest.raises(DllmError, match=f"{name} has no rows; give another split"):
        prompts.of_dataset(name)


def test_tasks_give_training_problems():
    found = prompts.of_tasks(["lists", "drill"], 3)
    assert len(found) == 6 and all(isinstance(prompt, str) for prompt in found)
    with pytest.raises(DllmError, match="unknown task 'list'; did you mean 'lists'"):
        prompts.of_tasks(["list"], 3)


def test_prompts_come_once_in_an_order_of_the_seed():
    given = ["a", "b", "c", "a", [1, 2], [1, 2]]
    found = prompts.chosen(given, None, 0)
    assert len(found) == 4 and found == prompts.chosen(given, None, 0) and found[:2] == prompts.chosen(given, 2, 0)
    assert any(prompts.chosen(given, None, seed) != found for seed in range(1, 9))
