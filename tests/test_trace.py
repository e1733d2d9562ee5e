import json

import pytest
import torch

import cases
from dllm import Span, Step, Trace, generate, stream


def test_a_trace_writes_one_line_per_change(model, tmp_path):
    made = generate(model, cases.PROMPTS, "threshold:threshold=0.6", **cases.SHAPE, observers=[trace := Trace()])
    trace.to_json(tmp_path / "trace.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert lines == trace.changes and len(lines) == 40
    for line in lines:
        prompt = cases.PROMPTS[line["request"]]
        assert line["token"] == made.completions[line["request"]][line["column"] - len(prompt)]
        assert 0 < line["confidence"] <= 1 and 0 < line["seconds"] <= round(made.seconds, 6)
    assert sorted({line["step"] for line in lines}) == [*range(made.forwards)]


def test_every_observer_sees_every_step(model):
    seen, trace = [], Trace()
    made = generate(model, cases.PROMPTS, **cases.SHAPE, observers=[seen.append, trace])
    assert len(seen) == made.forwards and sum(int(step.changed.sum()) for step in seen) == len(trace.changes)


def test_padding_never_counts_as_a_change():
    span = Span(torch.tensor([[4, 5, 5]]), torch.tensor([[True, True, False]]))
    before, after = torch.tensor([[9, 9, 9]]), torch.tensor([[1, 9, 3]])
    step = Step(0, [2], span, before, after, after, torch.tensor([[0.5, 0.25, 0.1]]), 0.125, 9)
    trace = Trace()
    trace(step)
    assert step.changed.tolist() == [[True, False, False]]
    [change] = trace.changes
    assert change == {
        "step": 0,
        "request": 2,
        "forward": 1,
        "column": 4,
        "token": 1,
        "kind": "revealed",
        "confidence": 0.5,
        "seconds": 0.125,
    }


def test_a_change_is_revealed_remasked_or_edited():
    span = Span(torch.tensor([[4, 5, 6, 7]]), torch.ones(1, 4, dtype=torch.bool))
    before, after = torch.tensor([[9, 3, 3, 3]]), torch.tensor([[1, 9, 2, 3]])
    (trace := Trace())(Step(7, [0], span, before, after, after, torch.full((1, 4), 0.5), 0.5, 9))
    assert [change["kind"] for change in trace.changes] == ["revealed", "remasked", "edited"]


def test_forwards_are_counted_for_each_request(model):
    made = generate(model, cases.PROMPTS, "static", **cases.SHAPE, observers=[trace := Trace()])
    assert [trace.forwards[request] for request in range(len(cases.PROMPTS))] == made.nfe.tolist()
    for change in trace.changes:
        assert 1 <= change["forward"] <= made.nfe[change["request"]]


def test_with_its_run_a_trace_holds_what_a_player_needs(model, tmp_path):
    run = stream(model, cases.PROMPTS, "factor", **cases.SHAPE, observers=[trace := Trace()])
    with pytest.raises(RuntimeError, match="take all steps first"):
        trace.to_json(tmp_path / "trace.jsonl", run)
    for _ in run:
        pass
    trace.to_json(tmp_path / "trace.jsonl", run, seed=3)
    header, *changes = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert changes == [change | {"text": f"{change['token']} "} for change in trace.changes]
    assert header["settings"] == {"sampler": "Factor(factor=1.0)", "seed": 3} and header["mask_id"] == 39
    for asked, prompt, answer in zip(header["requests"], cases.PROMPTS, run.result().completions, strict=True):
        assert (asked["prompt"], asked["answer"]) == (list(prompt), answer)
        assert asked["canvas"] == [39] * len(answer) and asked["answer_text"] == [f"{token} " for token in answer]
