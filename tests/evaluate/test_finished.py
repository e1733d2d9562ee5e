"""Finished work is on disk when it is done, and comes back after a kill."""

import pytest

from dllm import DllmError
from dllm.evaluate.finished import Finished, key_of


def test_what_is_finished_comes_back(tmp_path):
    with Finished(str(tmp_path / "a" / "b")) as kept:
        kept.add("x", {"text": "é"})
        assert "é" in (tmp_path / "a" / "b" / "rank_0.jsonl").read_text(), "written before the file is closed"
    with Finished(str(tmp_path / "a" / "b"), "rank_1") as again:
        assert again.found == {"x": {"text": "é"}}


@pytest.mark.parametrize("cut", range(1, 32))
def test_a_line_that_a_kill_cut_short_is_lost_alone(tmp_path, cut):
    with Finished(str(tmp_path)) as kept:
        kept.add("x", 1)
        kept.add("y", "a é")
    path = tmp_path / "rank_0.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with Finished(str(tmp_path)) as again:
        found = dict(again.found)
        again.add("z", 3)
    assert found["x"] == 1 and set(found) <= {"x", "y"}
    with Finished(str(tmp_path)) as last:
        assert last.found == {**found, "z": 3}


def test_without_a_folder_nothing_is_kept():
    with Finished(None) as kept:
        kept.add("x", 1)
        assert kept.found == {"x": 1} and kept.file is None


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DllmError, match="cannot be used to keep finished work"):
        Finished(str(tmp_path / "file"))


def test_equal_work_has_equal_keys():
    assert key_of("a", {"b": 1, "c": [2]}) == key_of("a", {"c": [2], "b": 1}) != key_of("a", {"b": 1, "c": [3]})
