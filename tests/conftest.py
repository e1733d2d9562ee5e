import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read by triton when a kernel is defined
torch.set_num_threads(1)

# dllm is imported in the fixtures, not here: conftest runs before the import hook of --jaxtyping-packages.


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _seeds():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def tiny():
    """The function that makes a tiny random model; the same arguments give the same model, made once."""
    from functools import cache

    from dllm.models.tiny import tiny

    return cache(tiny)


@pytest.fixture(scope="session")
def model(tiny):
    return tiny()


@pytest.fixture(scope="session")
def walled():
    """Skips where the sandbox refuses to run, unless DLLM_TEST_SANDBOX says that it must not."""
    from dllm.evaluate.sandbox import capabilities

    if (how := capabilities()["files"]).startswith("none"):
        if os.environ.get("DLLM_TEST_SANDBOX"):
            pytest.fail(f"DLLM_TEST_SANDBOX is set, and the sandbox has no walls here: {how}")
        pytest.skip("this machine has neither user namespaces nor Landlock: the sandbox refuses to run")


@pytest.fixture
def unchecked(monkeypatch):
    """As users run the library: types are not checked at calls, so that a wrong one meets the library's own errors."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
