"""How fast decoding can be at all: the bytes that a forward must move and the operations it must do, as arithmetic.

Every weight is read once, stored keys and values are read once by the rows that attend to them, those of computed rows
are written once, and logits are written and read once. Neither activations nor norms are counted, and the two kinds of
work are taken to overlap, so that nothing is faster than its floor. Shape letters: B sequences, N rows of each, L keys.
"""

from dataclasses import dataclass

from dllm.metrics import flops
from dllm.spec import ModelSpec


@dataclass(frozen=True)
class Ceilings:
    """What the device does at its best, measured in the same run."""

    bytes_per_second: float
    """A large copy, what is read and what is written counted."""
    flops_per_second: float
    """A large bf16 product of random matrices."""
    fp8_flops_per_second: float = 0.0
    """The same in e4m3; 0 where it cannot be had."""


@dataclass(frozen=True)
class Work:
    """What a forward moves and computes."""

    weight_bytes: float
    other_bytes: float
    flops: float
    """Of the layers and attention."""
    head_flops: float = 0.0

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.other_bytes

    def seconds(self, ceilings: Ceilings) -> float:
        """The floor: the longer of the time to move the bytes and the time to compute."""
        return max(self.bytes / ceilings.bytes_per_second, (self.flops + self.head_flops) / ceilings.flops_per_second)

    def rate(self, seconds: float) -> float:
        """Operations a second, of a forward that took so long."""
        return (self.flops + self.head_flops) / seconds


def forward(
    spec: ModelSpec,
    batch: int,
    rows: int,
    length: int,
    predicted: int,
    *,
    matrix_bytes: float = 2,
    stored: bool = True,
) -> Work:
    """A forward of B sequences that computes N rows of each, which attend to L keys, and predicts some of them.

    predicted: rows of a sequence that go through the head. matrix_bytes: a number of the layers' matrices; all others
    are bfloat16. stored: keys are read from the store, not computed in this forward.
    """
    head = spec.hidden_size * spec.vocab_size
    key_bytes = 2 * 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim  # a key and a value of a column
    moved = batch * key_bytes * (rows + (length if stored else 0)) + 2 * 2 * batch * predicted * spec.vocab_size
    return Work(
        weight_bytes=matrix_bytes * spec.active_parameters + 2 * head,
        other_bytes=moved,
        flops=flops(spec, batch * rows, 0, batch * rows * length),
        head_flops=2 * head * batch * predicted,
    )


def step(spec: ModelSpec, batch: int, rows: int, length: int, *, matrix_bytes: float = 2) -> Work:
    """A window step: the block's rows against the stored rest, all of them predicted."""
    return forward(spec, batch, rows, length, rows, matrix_bytes=matrix_bytes)


def refresh(spec: ModelSpec, batch: int, length: int, predicted: int) -> Work:
    """All columns computed, and the block's predicted."""
    return forward(spec, batch, length, length, predicted, stored=False)


def end_to_end(
    spec: ModelSpec, ceilings: Ceilings, *, batch: int, rows: int, length: int, forwards: int, refreshes: int
) -> float:
    """Seconds of a trace: so many forwards, of which some are refreshes and the others window steps."""
    one, all_columns = step(spec, batch, rows, length), refresh(spec, batch, length, rows)
    return (forwards - refreshes) * one.seconds(ceilings) + refreshes * all_columns.seconds(ceilings)
