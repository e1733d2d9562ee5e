import sys
from importlib import import_module
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name):
    """A module beside the benchmarks, imported as they import it."""

    @pytest.fixture(scope="session", name=name)
    def found():
        sys.path.insert(0, str(SCRIPTS))
        try:
            return import_module(name)
        finally:
            sys.path.remove(str(SCRIPTS))

    return found


floors, shapes, bench_common, bench_decode, bench_kernels = map(
    script, ("floors", "shapes", "bench_common", "bench_decode", "bench_kernels")
)
