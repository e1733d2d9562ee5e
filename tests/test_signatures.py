import jaxtyping
import pytest
import torch
from beartype import beartype

import signatures
from dllm.canvas import Span, undecided


def refuses(function, *arguments):
    try:
        function(*arguments)
    except jaxtyping.TypeCheckError:
        return True
    return False


def double(x: int) -> int:
    return 2 * x


doubled = signatures.sparing(typechecker=beartype)(double)


@pytest.mark.parametrize("_", ["once", "again"])
def test_of_each_test_the_first_calls_are_checked_and_a_share_of_the_later_ones(_):
    first, every = signatures.FIRST, signatures.EVERY
    refused = [n for n in range(2 * every + 1) if refuses(doubled, "x")]
    assert refused == [*range(first), every, 2 * every]


def test_what_the_library_defines_is_checked():
    columns, valid = torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool)
    assert refuses(Span, columns, valid) and not refuses(Span, columns, valid[:, :2])
    assert refuses(undecided, columns.float(), 39)
