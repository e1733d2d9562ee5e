"""A fingerprint tells weights from others, and the same weights in every dtype."""

from types import SimpleNamespace

import pytest
import torch

from dllm import DllmError
from dllm.fingerprint import fingerprint


@pytest.mark.usefixtures("unchecked")
def test_the_same_weights_in_every_dtype_and_inside_a_wrapper(tiny):
    found = {fingerprint(tiny(dtype=dtype)) for dtype in (torch.float64, torch.float32, torch.bfloat16)}
    assert len(found) == 1 and fingerprint(SimpleNamespace(module=tiny())) in found


def test_other_weights_names_and_shapes_are_told_apart(tiny):
    models = [tiny(), tiny(seed=1), tiny(tied_head=True), tiny(n_layers=1), tiny(qkv_bias=True)]
    assert len({*map(fingerprint, models)}) == len(models)


@pytest.mark.usefixtures("unchecked")
def test_what_has_no_weights_has_none():
    with pytest.raises(DllmError, match="SimpleNamespace has no weights that could be told from others"):
        fingerprint(SimpleNamespace())


@pytest.mark.usefixtures("unchecked")
def test_the_last_of_half_a_billion_values_is_read_as_well():
    """As many as in LLaDA-8B's embedding; float32 knows no such number but the next one."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(1).expand(126_464 * 4096), requires_grad=False)
    assert len(fingerprint(module)) == 16
