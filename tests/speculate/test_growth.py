"""Trees that grow best first: the best of all paths, found level by level."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.speculate.growth import grow, template
from dllm.speculate.guess import children

WIDTH, DEPTH = 3, 3


def likely(seed):
    """How likely each token is behind each path, and the children that tell it."""
    draw = torch.Generator().manual_seed(seed)
    table = {
        path: torch.rand(WIDTH, generator=draw).tolist() for n in range(DEPTH) for path in product(range(3), repeat=n)
    }

    def score(path):
        return table[path[:-1]][path[-1]] * (score(path[:-1]) if len(path) > 1 else 1.0)

    def expand(asked):
        return [[*enumerate(table[tuple(tree.tokens[n] for n in tree.path(node))])] for _, tree, node in asked]

    return score, expand


def paths(tree):
    found = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


@given(st.integers(0, 999), st.integers(1, 30))
def test_a_tree_holds_the_best_of_all_paths(seed, budget):
    score, expand = likely(seed)
    everything = [path for n in range(1, DEPTH + 1) for path in product(range(WIDTH), repeat=n)]
    best = sorted(everything, key=lambda path: -score(path))[:budget]
    first, second = grow(2, expand, budget, DEPTH)
    assert set(paths(first)) == set(best) and len(first) == min(budget, len(everything))
    assert second.tokens == first.tokens  # rows grow side by side


def test_every_level_is_asked_for_once_and_for_all_rows_and_no_level_behind_the_last():
    _, expand = likely(0)
    levels = []

    def counted(asked):
        levels.append({len(tree.path(node)) for _, tree, node in asked})
        assert {row for row, _, _ in asked} == {0, 1}
        return expand(asked)

    grow(2, counted, 12, 2)
    assert levels == [{0}, {1}]


def test_a_node_without_children_ends_its_branch_and_a_row_without_any_has_an_empty_tree():
    trees = grow(2, lambda asked: [[(7, 0.5)] if row and len(tree.tokens) < 2 else [] for row, tree, _ in asked], 9, 9)
    assert [tree.tokens for tree in trees] == [[], [7, 7]] and trees[1].is_chain


def test_a_template_has_ranks_for_tokens_and_the_paths_of_the_highest_products():
    tree = template([[0.6, 0.3, 0.05], [0.5, 0.1, 0.05]], 5)
    assert sorted(paths(tree)) == [(0,), (0, 0), (0, 1), (1,), (1, 0)]


def test_children_are_the_best_guesses_with_their_share_and_none_that_cannot_be():
    found = children(torch.tensor([[0.0, 2.0, -torch.inf, 1.0], [5.0, 0.0, 0.0, 0.0]]), 9)
    assert [token for token, _ in found[0]] == [1, 3, 0] and sum(share for _, share in found[0]) == pytest.approx(1.0)
    assert [len(children(torch.zeros(1, 4), width)[0]) for width in (1, 3, 9)] == [1, 3, 4]
