import gzip
import json

import pytest

from dllm.errors import DllmError
from dllm.evaluate import data

ROWS = [{"question": "1 + 1?\u2028", "answer": "#### 2"}, {"question": "é?", "answer": "#### 3"}]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def test_every_kind_of_file_has_the_same_rows(write, tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    written = [
        write("rows.jsonl", lines(ROWS) + b"\n"),
        write("rows.jsonl.gz", gzip.compress(lines(ROWS), mtime=0)),
        write("rows.json", json.dumps(ROWS).encode()),
        tmp_path / "rows.parquet",
    ]
    assert [data.read(path) for path in written] == [ROWS] * 4
    assert data.gsm8k("test", str(written[0])) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"a,b", r"is none of \.jsonl, \.jsonl\.gz, \.json, \.parquet"),
        ("rows.jsonl", b"{torn", "cannot be read"),
        ("rows.jsonl", b"\xff", "cannot be read"),
        ("rows.jsonl.gz", b"plain", "cannot be read"),
        ("rows.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-4], "cannot be read"),
        ("rows.parquet", b"plain", "cannot be read"),
        ("rows.json", b'{"a": 1}', "must hold JSON objects"),
        ("rows.jsonl", b"", "must hold JSON objects"),
        ("rows.jsonl", b"1\n2\n", "must hold JSON objects"),
    ],
)
def test_what_holds_no_rows_is_one_line(name, content, message, write):
    with pytest.raises(DllmError, match=message):
        data.read(write(name, content))


def test_a_file_that_is_not_there():
    with pytest.raises(DllmError, match=r"the rows of nowhere\.jsonl cannot be read \(.*No such file"):
        data.read("nowhere.jsonl")


def test_another_data_set_is_refused(write):
    with pytest.raises(DllmError, match=r"row 1 of .* has no text in answer; it is another data set"):
        data.gsm8k("test", write("rows.jsonl", lines([ROWS[0], {"question": "a", "answer": 3}])))
    with pytest.raises(DllmError, match="has no text in task_id, prompt"):
        data.humaneval(write("rows.jsonl", lines(ROWS)))


@pytest.mark.parametrize(("split", "way_out"), [("test", "give --data FILE"), ("train", "give --shots FILE")])
def test_a_hub_that_cannot_be_reached_names_the_way_out(split, way_out, monkeypatch):
    import datasets

    def fail(*_args, **_options):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DllmError, match=rf"openai/gsm8k \(main, {split}\) .*ConnectionError: no network\); {way_out}"):
        data.gsm8k(split)
    monkeypatch.setattr(data, "installed", lambda *_: None)
    with pytest.raises(DllmError, match=r"pip install 'dllm-decode\[eval\]', or give --data FILE"):
        data.humaneval()


def test_the_hub_is_asked_for_the_split(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: asked.append((args, options)) or ROWS)
    assert data.gsm8k("train") == ROWS and asked == [(("openai/gsm8k", "main"), {"split": "train"})]


def test_humaneval_comes_from_the_installed_package():
    rows = data.humaneval()
    assert len(rows) == 164 and rows[0]["task_id"] == "HumanEval/0"


def test_a_package_that_is_not_installed_has_no_files():
    assert data.installed("no_such_package_here", "a") is None and data.installed("json", "no_such_file") is None
    assert data.installed("json", "decoder.py").name == "decoder.py"
