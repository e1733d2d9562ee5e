"""What a generation takes of a GPU's memory, counted without one: weights and store have sizes and no contents here."""

import pytest
import torch

from dllm.cache import DualCache
from dllm.canvas import Canvas
from dllm.models.transformer import Transformer
from dllm.schedule import MOST, together
from dllm.spec import ModelSpec

GIB = 1 << 30
LLADA = {"n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "head_dim": 128, "hidden_size": 4096, "mlp_size": 12288}
LLADA |= {"vocab_size": 126464, "max_length": 4096, "mask_id": 126336, "eos_ids": (126081,)}
PROMPT, ANSWER, BLOCK = 1024, 256, 32


@pytest.fixture(scope="module")
def llada():
    with torch.device("meta"):
        return Transformer(ModelSpec(**LLADA)).to(torch.bfloat16).requires_grad_(False)


def store(model, n_rows):
    """Bytes of the keys and values of a batch."""
    n = torch.zeros(n_rows, dtype=torch.long, device="meta")
    tokens = n[:, None].expand(-1, PROMPT + ANSWER)
    canvas = Canvas(tokens, tokens < 0, n, n, n, model.spec.mask_id, ANSWER)
    return DualCache().start(model.spec, canvas, torch.bfloat16).nbytes


def layers(spec, columns):
    """The most bytes that stand at one time in a forward of so many columns, all bfloat16 but for the rotation."""
    hidden, mlp = spec.hidden_size, spec.mlp_size
    # The input and its norm; then gate and up, silu(gate), the product.
    half = 2 * (2 * hidden + 4 * mlp)
    # Or q, k and v; rotated q and k; of one of them three float32 copies while it is turned.
    rotation = 2 * (2 * hidden + 5 * hidden) + 3 * 4 * hidden
    return columns * max(half, rotation)


def test_a_batch_of_64_rows_of_llada_fits_into_an_h200_and_an_h100(llada):
    weights, length = sum(p.nbytes for p in llada.parameters()), PROMPT + ANSWER
    assert 14.9 * GIB < weights < 15 * GIB and store(llada, 64) == 40 * GIB
    assert together([length] * 64) == [[*range(64)]]
    # The logits in bfloat16, two copies in float32, and with noise two in float64.
    logits = 64 * BLOCK * llada.spec.vocab_size * (2 + 4 + 4 + 8 + 8)
    assert logits < 6.5 * GIB and layers(llada.spec, 64 * length) < 9 * GIB
    assert weights + store(llada, 64) + layers(llada.spec, 64 * length) + logits < 72 * GIB


def test_a_forward_has_no_more_columns_than_there_is_memory_for(llada):
    length = PROMPT + ANSWER
    groups = together([length] * 256)
    assert sorted(row for group in groups for row in group) == [*range(256)]
    assert all(len(group) * length <= MOST for group in groups) and layers(llada.spec, MOST) < 15 * GIB
    assert together([2 * MOST, 2 * MOST]) == [[0], [1]]  # one row cannot be cut
