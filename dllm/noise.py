"""Noise that belongs to a place, not to a moment: keyed by (seed, request, column, token), from a counter-based hash.

The same position of the same request always meets the same noise, whatever else runs in the batch and however many
forwards it takes to get there. So a row does not depend on its batch, and drafts can be verified at any temperature
(drafter-invariant decoding, arXiv:2408.07978).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_WEYL, _MIX1, _MIX2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # a logical shift: int64 is signed


def mix(key: Int[Tensor, "..."], value: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Hash a value into a key: the finaliser of SplitMix64 over wrapping 64-bit arithmetic."""
    x = key + (value + 1) * _WEYL
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def request_id(prompt: Sequence[int], repeat: int) -> int:
    """The name of a request for its noise: a hash of its prompt and of how often that prompt was asked before."""
    text = ",".join(map(str, [*prompt, repeat]))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


OWN = 4
"""The stream of noise of a drafter that must not meet the target's: `uniform`, `gumbel` and `trial` have 1, 2 and 3."""


@dataclass(frozen=True)
class Key:
    """Where the noise of a batch comes from."""

    seed: int
    requests: Int[Tensor, " B"]

    def _hash(self, columns: Int[Tensor, "B W"], stream: int) -> Int[Tensor, "B W"]:
        begin = int(mix(torch.tensor(self.seed), torch.tensor(stream)))  # on the host, so that no GPU waits for it
        begun = torch.full((), begin, device=columns.device)
        return mix(mix(begun, self.requests)[:, None], columns)

    def uniform(self, columns: Int[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        """A number in (0, 1) for every column, float64."""
        return _unit(self._hash(columns, 1))

    def trial(self, columns: Int[Tensor, "B W"], rank: int) -> Float[Tensor, "B W"]:
        """A number in (0, 1) for the rank-th draft that is tried at every column, float64."""
        return _unit(mix(self._hash(columns, 3), torch.tensor(rank, device=columns.device)))

    def tokens(self, columns: Int[Tensor, "B W"], vocab_size: int) -> Int[Tensor, "B W"]:
        """A token for every column, all equally probable."""
        return (_unit(self._hash(columns, 5)) * vocab_size).long()

    def at(self, step: Int[Tensor, " B"]) -> "Key":
        """Other noise of the same requests, for a rule that draws anew at every step."""
        return Key(self.seed, mix(self.requests, step))

    def gumbel(self, columns: Int[Tensor, "B W"], vocab_size: int, stream: int = 2) -> Float[Tensor, "B W V"]:
        """Standard Gumbel noise for every token at every column, float64; streams are independent of each other.

        float64 because a coarse tail acts like a lower temperature (arXiv:2409.02908).
        """
        return gumbel(self._hash(columns, stream), vocab_size)

    def place(self, columns: Int[Tensor, "B W"]) -> Int[Tensor, "B W"]:
        """What the noise of `gumbel` at every column is a function of, with the token."""
        return self._hash(columns, 2)


def gumbel(place: Int[Tensor, "B W"], vocab_size: int) -> Float[Tensor, "B W V"]:
    """Standard Gumbel noise for every token at columns with these hashes, float64."""
    token = torch.arange(vocab_size, device=place.device)
    return -(-_unit(mix(place[..., None], token)).log()).log()


def _unit(bits: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    return (_shift(bits, 12).double() + 0.5) * 2.0**-52  # 52 bits: with 53 the largest would round to 1
