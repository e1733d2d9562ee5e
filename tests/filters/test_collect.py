"""Traces: what the oracle sees and does, and that killing the collection changes nothing in its files."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from dllm import DllmError
from dllm.filters import collect, files
from dllm.filters.collect import Collection, Decoding, asked_of
from dllm.filters.oracle import Oracle
from dllm.filters.traces import LEAST, Traces, split
from dllm.samplers import Static


def collection(model, prompts, decoding, folder, shard=6):
    return Collection(model, asked_of(model, prompts[:20], decoding), decoding, folder, shard)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(model, prompts, decoding, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    collection(model, prompts, decoding, folder).make()
    return folder


def test_the_oracle_ends_with_the_answers_in_no_more_forwards(model, prompts, decoding):
    asked = asked_of(model, [*prompts[:8], prompts[0]], decoding)  # the same prompt twice
    plain = decoding.run(model, asked, Static())
    made = decoding.run(model, asked, Oracle.of(asked, plain.completions, 4, model.device))
    assert made.completions == plain.completions
    assert (made.nfe <= plain.nfe).all() and made.nfe.sum() < plain.nfe.sum()


def test_traces_tell_what_was_masked_and_which_proposals_are_final(model, prompts, tmp_path):
    made = collection(model, prompts, Decoding.of("none", 4, 4), tmp_path, shard=12)  # one block
    made.make()
    traces = Traces.read(made.paths)
    for prompt in range(20):
        steps = traces.steps_of([prompt])
        assert len(steps.prompt) == traces.oracle_nfe[prompt] and steps.masked[0].all()
        final = (steps.masked & steps.right)[:-1]
        revealed = (steps.masked[:-1] & ~steps.masked[1:]) | ~steps.masked[:-1]
        assert (revealed >= final).all()  # all that is final is revealed
        assert ((steps.masked[:-1] & ~steps.masked[1:]).sum(1) == final.sum(1).clamp(min=1)).all()
    assert traces.features.shape == (len(traces.prompt), 4, 9) and traces.answer.shape == (20, 4)


@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_a_kill_loses_no_shard_and_changes_no_file(whole, model, prompts, decoding, tmp_path, when):
    torch.set_num_threads(1)
    if not (child := os.fork()):
        try:
            done, real, replace, traces = [], collect.save, os.replace, Collection.traces

            def die(at, which):
                if at == when and "traces" in str(which):
                    done.append(which)
                    if len(done) == 2:
                        os.kill(os.getpid(), signal.SIGKILL)

            # Before a shard, with its file written and not yet in its place, and after it.
            Collection.traces = lambda self, which: die("before", f"traces {which}") or traces(self, which)
            files.os.replace = lambda old, new: die("within", new) or replace(old, new)
            collect.save = lambda path, tensors: real(path, tensors) or die("after", path)
            collection(model, prompts, decoding, tmp_path).make()
        finally:
            os._exit(1)  # never on into the other tests
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    there = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("traces*")}
    assert len(there) == (2 if when == "after" else 1)
    collection(model, prompts, decoding, tmp_path).make()
    for name, time in there.items():
        assert (tmp_path / name).stat().st_mtime_ns == time, "a finished shard was made again"
    made = contents(tmp_path)
    assert {name: made[name] for name in contents(whole)} == contents(whole)


def test_ranks_share_the_prompts_and_make_the_same_files(whole, model, prompts, decoding, tmp_path):
    for rank in (2, 1, 0):
        collection(model, prompts, decoding, tmp_path).make(rank, 3)
    assert contents(tmp_path) == contents(whole)


def test_rank_0_waits_for_the_others(whole, model, prompts, decoding, tmp_path, monkeypatch):
    other = collection(model, prompts, decoding, tmp_path)
    monkeypatch.setattr(collect, "sleep", lambda _: other.make(1, 2))
    collection(model, prompts, decoding, tmp_path).make(0, 2)
    assert contents(tmp_path) == contents(whole)


def test_traces_of_something_else_are_not_gone_on_with(whole, model, prompts, decoding):
    for change in ({"shard": 7}, {"decoding": Decoding.of("none", 6, 3)}):
        other = Collection(**vars(collection(model, prompts, decoding, whole)) | change)
        with pytest.raises(DllmError, match=r"holds traces with .*, and these have .*; give another folder"):
            other.make()


def test_a_folder_that_cannot_be_written_to_is_told(model, prompts, decoding, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DllmError, match="cannot be written to"):
        collection(model, prompts, decoding, tmp_path / "file" / "folder").make()


def test_a_shard_cut_short_is_told_with_the_way_out(whole, model, prompts, decoding, tmp_path):
    made = collection(model, prompts, decoding, tmp_path)
    made.make()
    path = made.paths[1]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DllmError, match=f"{path.name} cannot be read .* remove it, and it is collected again"):
        Traces.read(made.paths)
    path.unlink()
    made.make()
    assert contents(tmp_path) == contents(whole)


def test_another_programs_file_is_no_shard(tmp_path):
    files.save(tmp_path / "a.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(DllmError, match="has no 'features'; it was not written by dllm train-filter"):
        Traces.read([tmp_path / "a.safetensors"])
    assert load_file(tmp_path / "a.safetensors").keys() == {"x"}


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    files.save(path, {"x": torch.zeros(1)})
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        files.save(path, {"x": torch.ones(1)})
    assert load_file(path)["x"] == 0 and list(tmp_path.iterdir()) == [path]


def test_each_prompt_serves_one_purpose():
    parts = split(100)
    assert [i for part in parts.values() for i in part] == list(range(100)) and len(parts["calibrate"]) == 50
    with pytest.raises(DllmError, match=f"19 prompts are too few .* give at least {LEAST}"):
        split(LEAST - 1)
