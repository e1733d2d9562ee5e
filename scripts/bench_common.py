"""What the benchmarks share: ceilings of the device, repetitions in turn, the environment, and their files."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from floors import Ceilings
from torch import Tensor

from dllm.doctor import versions
from dllm.evaluate.results import commit
from dllm.kernels.quantize_rows import quantize_rows

T = TypeVar("T")


def spread(values: Sequence[float]) -> list[float]:
    """The smallest, the median and the largest."""
    return [min(values), statistics.median(values), max(values)]


def interleaved(
    runs: Mapping[str, Callable[[], T]], repeat: int, failures: dict[str, str] | None = None
) -> dict[str, list[T]]:
    """What each run gives, over repetitions in turn, so that drift meets all alike. One round more warms up.

    failures: where to note a run that raises, which is then left out, so that a long measurement keeps the others.
    """
    made: dict[str, list[T]] = {name: [] for name in runs}
    for i in range(repeat + 1):
        for name, run in runs.items():
            if failures and name in failures:
                continue
            try:
                result = run()
            except Exception as error:
                if failures is None:
                    raise
                failures[name] = f"{type(error).__name__}: {error}"
                continue
            if i:
                made[name].append(result)
    return made


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Timer:
    """Marks in the device's own time; on a CPU in the host's."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.marks = device, list[Any]()

    def mark(self) -> None:
        """Note when the device comes to this point. It waits for nothing."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # of torch
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between each mark and the next."""
        wait(self.device)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        if self.device.type == "cuda":
            return [first.elapsed_time(then) / 1000 for first, then in pairs]
        return [then - first for first, then in pairs]


def timed(calls: Sequence[Callable[[], Any]], device: torch.device, repeat: int) -> list[float]:
    """Seconds of a call, `repeat` times. The calls take turns: give several on other data, more than fits the L2."""
    for call in calls:
        call()
    if device.type == "cuda":
        # The host falls behind a fast kernel: it is given a lead, so that marks lie between kernels and not launches.
        torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]  # of torch
    timer = Timer(device)
    timer.mark()
    for i in range(repeat):
        calls[i % len(calls)]()
        timer.mark()
    return timer.seconds()


def measure_ceilings(device: torch.device, quick: bool = False) -> Ceilings:
    """Copy bandwidth and matrix rates on random data, medians; quick: small, for trying the code out."""
    n, side, repeat = (1 << 16, 128, 3) if quick else (1 << 31, 8192, 15)
    rates = (copying(n, device, repeat), multiplying(side, device, repeat))
    eighth = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    return Ceilings(*rates, multiplying(side, device, repeat, scaled) if eighth else 0.0)


def copying(n: int, device: torch.device, repeat: int) -> float:
    """Bytes a second of a copy of n bytes, those read and those written."""
    source = torch.randint(0, 256, (n,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * n / statistics.median(timed([lambda: target.copy_(source)], device, repeat))


def product(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    return lambda: a @ b


def multiplying(
    side: int, device: torch.device, repeat: int, make: Callable[[Tensor, Tensor], Callable[[], Tensor]] = product
) -> float:
    """Operations a second of a product of two random square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / statistics.median(timed([make(a, b)], device, repeat))


def scaled(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    """The product of a and b transposed in 8 bits, a scale for every row."""
    (x, x_scale), (y, y_scale) = quantize_rows(a), quantize_rows(b)
    return lambda: torch._scaled_mm(x, y.T, scale_a=x_scale, scale_b=y_scale.T, out_dtype=torch.bfloat16)


def environment(device: torch.device, revision: str | None = None) -> dict[str, Any]:
    """What a measured figure depends on: device, driver, versions, commit and date."""
    told: dict[str, Any] = {"device": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
        facts = torch.cuda.get_device_properties(device)
        told = {
            "device": facts.name,
            "driver": found[0] if found else None,
            "multiprocessors": facts.multi_processor_count,
            "l2_bytes": facts.L2_cache_size,
            "cuda": torch.version.cuda,
        }
    return {
        **told,
        "versions": versions(),
        "commit": revision or commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write(result: Mapping[str, Any], path: Path | None, told: bool = True) -> None:
    """Put the result into a file, if one is named, all at once, and print it as one line of JSON, the last."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    if told:
        print(json.dumps(result))


def rounded(value: Any, digits: int = 4) -> Any:
    """Numbers of a result to so many digits that matter."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {name: rounded(part, digits) for name, part in value.items()}
    return [rounded(part, digits) for part in value] if isinstance(value, list | tuple) else value
