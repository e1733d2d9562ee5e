"""Which rows run together in the next forward."""

from collections.abc import Sequence


def together(counts: Sequence[int]) -> list[list[int]]:
    """Group rows that compute similar numbers of columns, the largest first.

    A refresh computes a whole canvas and a window step a few columns; in one forward the latter would be padded to the
    former. A row joins a group if it fills at least half of the group's width. Returns positions in `counts`, ascending
    within a group.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(counts)), key=lambda r: -counts[r]):
        if groups and 2 * counts[row] >= counts[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [sorted(group) for group in groups]
