"""What a user can fix: one class, which the command line prints as one line."""

import difflib
from collections.abc import Iterable


class DllmError(ValueError):
    """A wrong value, file or combination; the message names it, the rule and the way out."""


def unknown(kind: str, name: str, known: Iterable[str]) -> DllmError:
    """The error for a name that is not among the known ones, with the nearest one suggested."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}? There" if near else "there"
    return DllmError(f"unknown {kind} {name!r}; {hint} are: {', '.join(known) or 'none'}.")
