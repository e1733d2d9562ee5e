"""Each kernel's entry makes inputs that its function takes, counts its work, and sees a wrong result."""

import json
from importlib.util import find_spec

import pytest
import torch

NAMES = (
    *("write_rows", "attention", "mass", "drift", "token_stats"),
    *("rms_norm", "add_rms_norm", "swiglu", "linear", "quantize_rows"),
)


def available(module):
    return find_spec(f"dllm.kernels.{module}") is not None


def test_these_are_all(bench_kernels):
    assert tuple(bench_kernels.BENCHES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_measured_and_right(bench_kernels, name, tmp_path, capsys):
    if not available(bench_kernels.BENCHES[name].module or name):
        pytest.skip("this kernel is not here")
    out = tmp_path / "kernels.json"
    assert bench_kernels.main(["--kernels", name, "--quick", "--device", "cpu", "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == json.loads(out.read_text()) and len(told["kernels"]) == 2
    for figures in told["kernels"]:
        assert figures["right"] and figures["bytes"] > 0 and {"ours", "reference"} <= figures["seconds"].keys()


def test_a_wrong_result_and_what_was_left_out_are_seen(bench_kernels, shapes):
    bench = bench_kernels.BENCHES["quantize_rows"]
    shape = bench_kernels.Shape(2, 4, 24, shapes.SHAPES["tiny"], torch.device("cpu"))
    args = bench.make(shape)
    right = bench_kernels.kernel("quantize_rows").reference_quantize_rows

    def wrong(x):
        rows, scale = right(x)
        return rows, scale * 1.01

    def unfinished(x):
        rows, scale = right(x)
        return rows, torch.full_like(scale, torch.nan)

    assert bench_kernels.check("quantize_rows", bench, args, right)["right"]
    for call in (wrong, unfinished):
        assert not bench_kernels.check("quantize_rows", bench, args, call)["right"]


def test_an_unknown_kernel_is_refused(bench_kernels, capsys):
    with pytest.raises(SystemExit):
        bench_kernels.main(["--kernels", "atention"])
    assert "--kernels atention: there are write_rows, attention" in capsys.readouterr().err
