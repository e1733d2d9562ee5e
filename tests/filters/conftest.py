import random
from functools import partial

import pytest


@pytest.fixture(scope="session", autouse=True)
def _few_thresholds():
    """Tests of the whole way try two thresholds, not all."""
    from dllm.filters import calibrate, measure, train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "calibrate", partial(calibrate.calibrate, thresholds=(0.9, 0.5)))
        for name in ("PLAIN", "LEARNED"):
            patch.setattr(measure, name, (0.9,))
        yield


@pytest.fixture(scope="session")
def prompts():
    """Forty prompts of token ids for the tiny model."""
    draw = random.Random(0)
    return [[draw.randrange(37) for _ in range(draw.randrange(3, 9))] for _ in range(40)]


@pytest.fixture(scope="session")
def decoding():
    from dllm.filters.collect import Decoding

    return Decoding.of("none", 6, 4)


@pytest.fixture(scope="session")
def trained(model, prompts, decoding, tmp_path_factory):
    """A folder with a filter for the tiny model, on all features that do not remember, and the filter itself."""
    from dllm.filters.fit import Recipe
    from dllm.filters.train import train

    folder = tmp_path_factory.mktemp("filter")
    recipe = Recipe("shared:hidden=8", ("confidence", "margin", "entropy", "neighbours", "border"), epochs=20)
    made = train(model, prompts, folder, name="tiny", recipe=recipe, decoding=decoding, alpha=0.9, shard=16)
    return folder, made
