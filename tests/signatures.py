"""Signatures are checked at each function's first calls of a test, and at a share of the later ones.

A decoding loop calls the same functions thousands of times with arguments of the same kinds: to check every call took
two thirds of the time of such a test.
"""

import functools
import inspect
from dataclasses import is_dataclass

from jaxtyping import jaxtyped

FIRST, EVERY = 4, 16
"""How many calls are checked from the start of a test, and of how many later ones one is."""

calls = {}
"""Of each function, by the id of its code, so that all closures of one definition count together."""


def sparing(*, typechecker):
    """jaxtyping.jaxtyped, as its import hook applies it to functions and classes, for a share of the calls."""
    check = jaxtyped(typechecker=typechecker)

    def decorate(made):
        if inspect.isclass(made):
            if is_dataclass(made) and not hasattr(made.__init__, "__wrapped__"):
                made.__init__ = decorate(made.__init__)
            return made
        key, checked = id(made.__code__), None

        @functools.wraps(made)
        def call(*args, **kwargs):
            __tracebackhide__ = True
            nonlocal checked
            n = calls[key] = calls.get(key, -1) + 1
            if n >= FIRST and n % EVERY:
                return made(*args, **kwargs)
            checked = checked or check(made)  # not before: it compiles the signature
            return checked(*args, **kwargs)

        return call

    return decorate
