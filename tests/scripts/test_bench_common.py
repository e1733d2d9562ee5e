"""What all benchmarks rest on: repetitions in turn, marks in time, ceilings, and a file that is whole."""

import json

import pytest
import torch

CPU = torch.device("cpu")


def test_runs_take_turns_after_a_round_that_warms_up(bench_common):
    order = []
    runs = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    assert bench_common.interleaved(runs, 2) == {"a": [3, 5], "b": [4, 6]}
    assert order == [*"ababab"]


def test_a_run_that_fails_is_noted_and_left_out(bench_common):
    def fail():
        raise RuntimeError("no")

    failures = {}
    assert bench_common.interleaved({"bad": fail, "good": lambda: 1}, 2, failures) == {"bad": [], "good": [1, 1]}
    assert failures == {"bad": "RuntimeError: no"}
    with pytest.raises(RuntimeError, match="no"):
        bench_common.interleaved({"bad": fail}, 1)


def test_a_timer_tells_what_lies_between_its_marks(bench_common):
    timer = bench_common.Timer(CPU)
    for _ in range(3):
        timer.mark()
    assert len(timer.seconds()) == 2 and all(t >= 0 for t in timer.seconds())


def test_calls_take_turns_on_their_data(bench_common):
    seen = []
    calls = [lambda i=i: seen.append(i) for i in range(3)]
    assert len(bench_common.timed(calls, CPU, 4)) == 4
    assert seen == [0, 1, 2, 0, 1, 2, 0]


def test_ceilings_are_rates(bench_common):
    found = bench_common.measure_ceilings(CPU, quick=True)
    assert found.bytes_per_second > 1e6 and found.flops_per_second > 1e6 and found.fp8_flops_per_second == 0


def test_the_environment_names_commit_and_versions(bench_common):
    told = bench_common.environment(CPU, "abc")
    assert told["commit"] == "abc" and told["versions"]["torch"] == torch.__version__


def test_a_result_replaces_its_file_at_once_and_is_the_last_line(bench_common, tmp_path, capsys):
    path = tmp_path / "new" / "result.json"
    for figure in (1, 2):
        bench_common.write({"figure": figure}, path)
    assert json.loads(path.read_text()) == {"figure": 2} == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


def test_figures_are_rounded_to_what_matters(bench_common):
    assert bench_common.rounded({"a": [1.23456789e-6, (2, "x")], "b": None}) == {"a": [1.235e-6, [2, "x"]], "b": None}
