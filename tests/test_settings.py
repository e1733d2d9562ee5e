import pytest

from dllm import DllmError, Settings
from dllm.models.tiny import tiny
from dllm.settings import ALIASES, NAMES

COUNTS = ["gen_length", "block_length", "steps", "num_samples", "batch_size"]
AMOUNTS = ["temperature", "cfg_scale"]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8"])
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.usefixtures("unchecked")
def test_counts_are_whole_numbers_from_1(name, value):
    with pytest.raises(DllmError, match=f"{name}={value!r} must be a whole number of at least 1"):
        Settings(**{name: value})


@pytest.mark.parametrize("value", [-0.5, float("inf"), float("nan")])
@pytest.mark.parametrize("name", AMOUNTS)
def test_amounts_are_0_or_finite_numbers_above(name, value):
    with pytest.raises(DllmError, match=f"{name}={value} must be 0"):
        Settings(**{name: value})


@pytest.mark.usefixtures("unchecked")
def test_what_can_be_is_taken():
    made = Settings(gen_length=1, block_length=64, steps=None, temperature=0, stop="\n\n", seed=4)
    assert made.stop == ("\n\n",) and made.noise_seed == 4 and Settings(stop=["a", "b"]).stop == ("a", "b")
    assert 0 <= Settings().noise_seed < 2**31


def test_the_mask_is_the_models_unless_another_is_given():
    assert Settings().mask(tiny().spec) == 39 and Settings(mask_id=0).mask(tiny().spec) == 0
    with pytest.raises(DllmError, match=r"no mask token; give mask_id="):
        Settings().mask(tiny(mask_id=None).spec)
    for outside in (-1, 40):
        with pytest.raises(DllmError, match=f"mask_id={outside} is outside the vocabulary of 40 tokens"):
            Settings(mask_id=outside).mask(tiny().spec)


def test_aliases_stand_for_arguments_that_exist():
    assert set(ALIASES.values()) <= {*NAMES, "sampler"} and not set(ALIASES) & set(NAMES)
