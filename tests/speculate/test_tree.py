"""Token trees: their shape, what a walk accepts, and how those of a batch stand beside each other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.speculate.tree import Nodes, Tree


@st.composite
def trees(draw, most=9):
    """The tokens and parents of a tree; what checks types at calls must not run while hypothesis draws."""
    n = draw(st.integers(0, most))
    return [draw(st.integers(0, 3)) for _ in range(n)], [draw(st.integers(-1, i - 1)) for i in range(n)]


def path_to(tree, node):
    """The nodes from the first behind the root to this one."""
    return [] if node < 0 else [*path_to(tree, tree.parents[node]), node]


@given(trees())
def test_depths_and_ranks_follow_the_parents(tree):
    tree = Tree(*tree)
    assert tree.depths == [len(path_to(tree, node)) for node in range(len(tree))]
    assert tree.ranks == [tree.parents[:node].count(parent) for node, parent in enumerate(tree.parents)]
    assert tree.is_chain == (tree.depths == [*range(1, len(tree) + 1)])


@given(trees(), st.integers(0, 5))
def test_a_cut_tree_has_the_paths_of_the_whole_one_up_to_that_depth(tree, depth):
    tree = Tree(*tree)

    def paths(tree):
        return sorted([tree.tokens[at] for at in path_to(tree, node)] for node in range(len(tree)))

    assert paths(tree.upto(depth)) == [path for path in paths(tree) if len(path) <= depth]


@pytest.mark.parametrize("tree", [Tree.chain([5, 6, 7]), Tree([5, 6, 7], [-1, -1, 0])], ids=["chain", "tree"])
def test_a_cut_tree_keeps_the_probabilities_of_its_nodes(tree):
    q = torch.rand(3, 9)
    whole = Tree(tree.tokens, tree.parents, q)
    keep = [node for node in range(3) if whole.depths[node] <= 1]
    assert torch.equal(whole.upto(1).q, q[keep]) and whole.upto(3) is whole


@given(trees(), *(st.lists(values, min_size=10, max_size=10) for values in (st.booleans(), st.integers(10, 13))))
def test_a_walk_follows_the_first_accepted_child_and_ends_with_what_was_chosen(tree, accepted, chosen):
    tree = Tree(*tree)
    accepted, chosen = accepted[: len(tree) + 1], chosen[: len(tree) + 1]
    want, at = [], -1
    while True:
        children = [n for n, parent in enumerate(tree.parents) if parent == at and accepted[n + 1]]
        if not children:
            break
        at = children[0]
        want.append(at)
    path, tokens = tree.walk(accepted, chosen)
    assert path == want and tokens == [*(tree.tokens[node] for node in want), chosen[at + 1]]


@given(st.lists(trees(), min_size=1, max_size=3))
def test_the_nodes_of_a_batch_see_their_paths_and_stand_behind_their_roots(batch):
    batch = [Tree(*tree) for tree in batch]
    nodes = Nodes.of([7] * len(batch), [2] * len(batch), batch, torch.device("cpu"))
    for row, tree in enumerate(batch):
        n = len(tree)
        assert nodes.tokens[row, : n + 1].tolist() == [7, *tree.tokens]
        assert nodes.above[row, : n + 1].tolist() == [0, *(parent + 1 for parent in tree.parents)]
        assert nodes.following()[row, : n + 1].tolist() == [3, *(3 + depth for depth in tree.depths)]
        for node in range(n) if nodes.ancestors is not None else ():
            seen = nodes.ancestors[row, node + 1].nonzero().flatten().tolist()
            assert seen == [0, *(at + 1 for at in path_to(tree, node))]
    children = nodes.children()
    for row, tree in enumerate(batch):
        found = {int(children[rank, row, parent + 1]) for rank, parent in zip(tree.ranks, tree.parents, strict=True)}
        assert found == {*range(1, len(tree) + 1)} and int((children[:, row] > 0).sum()) == len(tree)


@pytest.mark.parametrize(
    ("tree", "what"),
    [
        (([1, 2], [-1]), "as many parents"),
        (([1], [-1], torch.rand(2, 4)), "as many rows of q"),
        (([1, 2], [-1, 1]), "stand before their node"),
        (([1], [-2]), "stand before their node"),
    ],
)
def test_what_is_no_tree_is_refused(tree, what):
    with pytest.raises(ValueError, match=what):
        Tree(*tree)
