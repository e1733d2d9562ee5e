"""The kernels are code that a GPU can run: what the interpreter accepts, the compiler may refuse."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_the_widest_kernel_compiles_for_a_gpu_and_spills_nothing():
    pytest.importorskip("triton")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "scripts/compile_kernels.py", "--model", "dream", "--dtype", "bfloat16"]
    made = subprocess.run([*command, "--only", "attention, drafts"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert re.findall(r"(_\w+): .* (\d+) spilled", made.stdout) == [
        ("_attention_kernel", "0"),
        ("_combine_kernel", "0"),
    ]
