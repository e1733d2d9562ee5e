"""Decoding is measured on the trace that is said, by the real engine, and each bar is judged by its own figures."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench(bench_decode):
    return bench_decode.bench_shapes


@pytest.fixture(scope="module")
def random(shapes):
    return shapes.random_model(shapes.SHAPES["tiny"], CPU, torch.float32)


def test_a_trace_takes_75_forwards_for_256_tokens_and_8_of_them_compute_all_columns(bench, random, shapes):
    model = shapes.random_model(replace(random.spec, max_length=512), CPU, torch.float32)
    sizes = bench.Sizes(prompt=24)
    timing = bench.Case(model, 2, sizes)()
    assert (len(timing.steps), len(timing.refreshes)) == (67, 8)
    assert len(timing.gaps) == 67 - 1 and timing.tokens == 2 * 256  # nothing follows the last step
    assert sum(timing.steps) + sum(timing.refreshes) + sum(timing.gaps) <= timing.seconds


def test_the_plain_loop_takes_the_same_trace(bench, random):
    ours, plain = bench.Case(random, 1, bench.QUICK)(), bench.plain(random, bench.QUICK, "dual")()
    for name in ("steps", "refreshes", "gaps"):
        assert len(getattr(plain, name)) == len(getattr(ours, name))
    assert plain.tokens == ours.tokens


def test_a_script_reveals_from_the_left_whatever_the_model_says(bench, random):
    import dllm

    steps = []
    dllm.generate(
        random, [[1, 2, 3]], bench.Scripted(), gen_length=8, block_length=8, steps=4, eos_early_stop=False,
        observers=[steps.append],
    )  # fmt: skip
    revealed = [torch.where(step.before != step.after)[1].tolist() for step in steps]
    assert revealed == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_random_weights_keep_activations_in_range(shapes, random):
    from dllm.cache import full_view
    from dllm.canvas import Span

    span = Span(torch.arange(24)[None], torch.ones(1, 24, dtype=torch.bool))
    logits = random(torch.randint(0, 90, (1, 24)), full_view(random.spec, [24]), span)
    assert 0.5 < logits.std() < 2
    blocks = shapes.in_blocks(random, 8)
    assert blocks.spec.attention == "block" and random.spec.attention == "full"
    assert blocks.head.weight is random.head.weight


@pytest.mark.parametrize(
    ("figure", "bound", "at_most", "verdict"),
    [(1.2, 1.25, True, "met"), (1.3, 1.25, True, "not met"), (0.6, 0.6, False, "met"), (0.5, 0.6, False, "not met"),
     (math.nan, 0.6, False, "not measured"), (1.0, None, False, "")],
)  # fmt: skip
def test_a_bar_is_met_or_not(bench, figure, bound, at_most, verdict):
    assert bench.Bar("", figure, bound, at_most).verdict == verdict


def test_bars_are_the_figures_that_they_name(bench, floors, shapes):
    spec, sizes, ceilings = shapes.SHAPES["llada-8b"], bench.Sizes(), floors.Ceilings(4.3e12, 790e12)

    def run(**figures):
        return {name: [value] * 3 for name, value in figures.items()}

    found = {
        "one": {
            "dual": run(steps=4e-3, gaps=3e-5, seconds=0.5, tokens_per_second=500.0, step_seconds_per_token=1e-3),
            "vicinity": run(steps=4.2e-3),
            "plain dual": run(steps=2e-2, tokens_per_second=100.0),
        },
        "many": {"dual": run(steps=3e-2, step_seconds_per_token=2e-4)},
        "many, whole answers": {"dual": run(tokens_per_second=900.0, step_seconds_per_token=2e-4)},
    }
    got = {bar.name: bar for bar in bench.bars(spec, sizes, ceilings, found)}
    figures = [
        ("window step of one sequence, times its floor", 4 / 3.65, "met"),
        ("gap between its steps, microseconds", 30, "met"),
        ("a step of 128 rows over one of 32", 1.05, "met"),
        ("one sequence end to end, times its floor", 0.5 / 0.434, "met"),
        ("one sequence end to end, times the plain loop", 5.0, "met"),
        ("window steps of one sequence, times the plain loop", 5.0, "met"),
        ("window steps of 32 sequences, times the tokens per second of one", 5.0, "met"),
        ("32 sequences end to end, times the tokens per second of one", 1.8, "met"),
        ("window steps of 32 sequences (L=1088), share of the matrix rate", 20.3 / 30, "met"),
    ]
    for name, figure, verdict in figures:
        assert got[name].figure == pytest.approx(figure, rel=0.02) and got[name].verdict == verdict, name
    assert got["window steps of 8 sequences (L=1280), share of the matrix rate"].verdict == "not measured"


def test_every_group_runs_and_leaves_its_figures(bench_decode, monkeypatch, tmp_path, capsys):
    out = tmp_path / "result.json"
    argv = ["bench_decode.py", "--shape", "tiny", "--device", "cpu", "--quick", "--out", str(out), "--commit", "c"]
    monkeypatch.setattr(sys, "argv", argv)
    bench_decode.main()
    told = json.loads(out.read_text())
    assert told == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["failures"] == {} and told["commit"] == "c"
    assert [*told["runs"]] == ["one", "few", "many", "many, whole answers", "most"]
    assert {"dual", "skip_decoded", "elastic", "exact", "subblock"} <= told["runs"]["many"].keys()
    assert told["runs"]["one"]["plain dual"]["forwards"] == told["runs"]["one"]["dual"]["forwards"] == 6
