"""Scripted decoding: answers of random models in a given number of forwards, by the real engine and by the plain loop.

What a step reveals is scripted, so that the number of forwards is realistic whatever the weights: 75 for 256 tokens in
8 blocks. A step is timed on the device, from before its forward to after its commit; a gap is what lies between two
steps, in which the host plans the next one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bench_common import Timer, wait
from jaxtyping import Int
from plain_loop import Plain
from torch import Tensor

import dllm
from dllm.models.transformer import Transformer
from dllm.samplers.base import Prediction, evenly
from dllm.samplers.static import Static


@dataclass(frozen=True)
class Sizes:
    """Of a trace, in tokens."""

    prompt: int = 1024
    answer: int = 256
    block: int = 32
    forwards: int = 75
    batches: tuple[int, int, int, int] = (1, 8, 32, 64)
    look: int = 48
    """Columns on either side of a block that a step may compute besides: 128 rows instead of 32."""
    part: int = 8
    """Columns of a sub-block."""
    window: int = 16
    """Masked columns of Elastic-Cache's window."""
    short: int = 64
    """The answer where window steps alone are compared at a large batch."""
    repeat: int = 5

    @property
    def length(self) -> int:
        return self.prompt + self.answer

    def steps(self, answer: int) -> int:
        """Forwards of an answer of this length."""
        return max(answer // self.block, self.forwards * answer // self.answer)


QUICK = Sizes(24, 16, 8, 6, (1, 2, 3, 4), 4, 4, 4, 8, 1)
"""To try the code out."""


@dataclass(frozen=True)
class Scripted(Static):
    """Reveal as many tokens as the schedule says, from the left, whatever the model is sure of."""

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        return p.reveal(p.top(p.quota, p.confidence - p.span.columns))


@dataclass(frozen=True)
class Timing:
    """One run, in seconds."""

    steps: list[float]
    """Its window steps."""
    refreshes: list[float]
    """Its forwards that computed most columns of a row, the prompt's among them."""
    gaps: list[float]
    """Between one step and the next, behind a window step."""
    seconds: float
    """All of it, from the call on."""
    tokens: int
    peak_bytes: int

    @classmethod
    def of(cls, timer: Timer, whole: Sequence[bool], began: float, tokens: int) -> "Timing":
        """From the marks before and after every step, and which of them computed most columns."""
        passed = timer.seconds()
        seconds = time.perf_counter() - began
        steps, gaps = passed[::2], passed[1::2]
        peak = torch.cuda.max_memory_allocated(timer.device) if timer.device.type == "cuda" else 0
        return cls(
            [t for t, w in zip(steps, whole, strict=True) if not w],
            [t for t, w in zip(steps, whole, strict=True) if w],
            [t for t, w in zip(gaps, whole, strict=False) if not w],
            seconds,
            tokens,
            peak,
        )


@dataclass(frozen=True)
class Case:
    """A way of decoding so many answers together."""

    model: Transformer
    batch: int
    sizes: Sizes
    cache: str = "dual"
    sampler: Any = Scripted()
    answer: int = 0
    """0: that of the sizes."""
    graphs: bool = True
    deterministic: bool = False

    @property
    def length(self) -> int:
        return self.answer or self.sizes.answer

    def __call__(self) -> Timing:
        wait(self.model.device)
        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.model.device)
        timer, whole, began = Timer(self.model.device), list[bool](), time.perf_counter()
        run = dllm.stream(
            self.model,
            prompts(self.model, self.sizes.prompt, self.batch),
            self.sampler,
            self.cache,
            gen_length=self.length,
            block_length=self.sizes.block if self.sampler == Scripted() else None,
            steps=self.sizes.steps(self.length),
            batch_size=self.batch,
            eos_early_stop=False,
            graphs=self.graphs,
            deterministic=self.deterministic,
        )
        predict = run.predict

        def marked(batch: Any) -> Tensor:
            whole.append(2 * max(batch.counts) > max(batch.lengths))
            timer.mark()
            return predict(batch)

        run.predict = marked  # type: ignore[method-assign]  # of this run alone
        for _ in run:
            timer.mark()
        return Timing.of(timer, whole, began, self.batch * self.length)


def prompts(model: Transformer, length: int, n: int) -> list[list[int]]:
    """Any tokens but the mask and the ends of text, all different."""
    draw = torch.Generator().manual_seed(1)
    special = [model.spec.mask_id, *model.spec.eos_ids]
    ids = torch.tensor([i for i in range(min(1000, model.spec.vocab_size)) if i not in special])
    drawn: list[list[int]] = ids[torch.randint(len(ids), (n, length), generator=draw)].tolist()
    return drawn


def plain(model: Transformer, sizes: Sizes, cache: str) -> Callable[[], Timing]:
    """The plain loop on the same prompt and trace."""
    [prompt] = prompts(model, sizes.prompt, 1)
    blocks, total = sizes.answer // sizes.block, sizes.steps(sizes.answer)
    shares = [(i + 1) * total // blocks - i * total // blocks for i in range(blocks)]  # as the scheduler has them
    trace = [quota for share in shares for quota in evenly(sizes.block, share)]

    def run() -> Timing:
        wait(model.device)
        timer, marks, began = Timer(model.device), list[bool](), time.perf_counter()

        def mark(whole: bool) -> None:
            timer.mark()
            marks.append(whole)

        with torch.no_grad():
            Plain(model, cache).generate(prompt, sizes.answer, sizes.block, trace=trace, mark=mark)
        return Timing.of(timer, marks[::2], began, sizes.answer)

    return run
