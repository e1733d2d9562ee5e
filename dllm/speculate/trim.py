"""A drafter's head that computes the frequent tokens only (VocabTrim, arXiv:2506.22694).

A drafter may guess less than the whole vocabulary: what it leaves out is never drafted, and costs no exactness.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dllm.errors import DllmError
from dllm.models.transformer import Transformer


class TrimmedHead(nn.Module):
    """A head that computes the logits of some tokens, and gives -inf for the others."""

    def __init__(self, head: nn.Linear, ids: Int[Tensor, " S"]) -> None:
        super().__init__()
        self.ids, self.vocab_size, self.weight = ids, len(head.weight), head.weight[ids]

    def forward(self, h: Float[Tensor, "... C"]) -> Float[Tensor, "... V"]:
        small = nn.functional.linear(h, self.weight)
        out: Tensor = small.new_full((*h.shape[:-1], self.vocab_size), -torch.inf)
        return out.index_copy_(-1, self.ids, small)


def trim_head(head: nn.Linear, ids: Sequence[int]) -> TrimmedHead:
    """The head for these tokens alone. Raises DllmError for no tokens, one given twice, and one it does not have."""
    wrong = [i for i in ids if type(i) is not int or not 0 <= i < len(head.weight)]
    if wrong:
        raise DllmError(
            f"{wrong[0]!r} is no token of a vocabulary of {len(head.weight)}; a head is trimmed to its own."
        )
    if not ids or len(set(ids)) < len(ids):
        raise DllmError(f"a head is trimmed to at least one token, each named once; got {len(ids)}.")
    return TrimmedHead(head, torch.tensor(list(ids), device=head.weight.device))


def trimmed(model: Transformer, ids: Sequence[int]) -> Transformer:
    """A drafter that shares all weights of this model and guesses these tokens only."""
    made = copy.copy(model)
    made._modules = model._modules | {"head": trim_head(model.head, ids)}
    return made


def frequent(texts: Iterable[Sequence[int]], always: Sequence[int] = ()) -> list[int]:
    """The tokens of these texts, the most frequent first, behind those that are always to be kept.

    Best of the target's own answers: it is these that are drafted. always: the ends of text, which are few in them.
    """
    counts = Counter(token for text in texts for token in text)
    return list(dict.fromkeys([*always, *sorted(counts, key=lambda token: (-counts[token], token))]))
