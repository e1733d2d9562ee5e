import json

import torch

import cases
from dllm import Span, Step, Trace, generate


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
    step = Step(0, [2], span, before, after, torch.tensor([[0.5, 0.25, 0.1]]), 0.125)
    trace = Trace()
    trace(step)
    assert step.changed.tolist() == [[True, False, False]]
    assert trace.changes == [{"step": 0, "request": 2, "column": 4, "token": 1, "confidence": 0.5, "seconds": 0.125}]
