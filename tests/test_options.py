"""Names and options as a command line gives them."""

from dataclasses import dataclass

import pytest

import dllm
from dllm import DllmError, options
from dllm.cache import CACHES, DualCache, PrefixCache
from dllm.samplers import SAMPLERS, Factor, Static, Threshold


@dataclass(frozen=True)
class Everything:
    flag: bool = False
    count: int = 1
    share: float = 0.5
    word: str = ""
    either: int | None = None
    other: tuple[int, ...] = ()


def make(text="everything", **given):
    return options.make("thing", {"everything": Everything}, {"all": "everything"}, text, **given)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("everything", Everything()),
        ("all:count=3", Everything(count=3)),
        ("everything:flag=true,share=1e-3,word=a b", Everything(flag=True, share=0.001, word="a b")),
        ("everything: count = 4 ,", Everything(count=4)),
        ("everything:flag=no", Everything()),
        ("everything:either=none", Everything()),
        ("everything:either=7", Everything(either=7)),
    ],
)
def test_text_becomes_an_object(text, made):
    assert make(text) == made


def test_values_are_checked_against_the_field():
    made = make(count=2.0, share=1, either=None, flag=True, other=(1, 2))
    assert made == Everything(count=2, share=1.0, flag=True, other=(1, 2)) and type(made.share) is float


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("everythin", {}, "unknown thing 'everythin'; did you mean 'everything'.*There are: all, everything"),
        ("", {}, "unknown thing ''"),
        ("everything:coutn=3", {}, "unknown option of thing everything 'coutn'; did you mean 'count'"),
        ("everything", {"cuont": 3}, "unknown option of thing everything 'cuont'; did you mean 'count'"),
        ("everything:count", {}, "'count' in everything:count is not option=value"),
        ("everything:count=many", {}, "everything:count=many is not of type int"),
        ("everything:count=2.5", {}, "everything:count=2.5 is not of type int"),
        ("everything", {"count": 2.5}, "everything:count=2.5 is not of type int"),
        ("everything", {"count": float("inf")}, "everything:count=inf is not of type int"),
        ("everything", {"count": True}, "everything:count=True is not of type int"),
        ("everything", {"share": "half"}, "everything:share=half is not of type float"),
        ("everything", {"flag": 2}, "everything:flag=2 is not of type bool"),
        ("everything:flag=maybe", {}, "everything:flag=maybe is not of type bool"),
        ("everything:either=x", {}, r"everything:either=x is not of type int \| None"),
        ("everything", {"count": None}, "everything:count needs a value of type int; got none"),
    ],
)
def test_what_cannot_be_is_named(text, given, message):
    with pytest.raises(DllmError, match=message):
        make(text, **given)


def test_samplers_and_caches_are_made_by_name():
    make, store = dllm.samplers.make, dllm.cache.make
    assert make("threshold:threshold=0.8") == make("threshold", threshold="0.8") == Threshold(0.8)
    assert make("confidence_threshold") == Threshold() and make("low_confidence") == Static()
    assert store("dual:refresh=8") == DualCache(refresh=8) and store("prefix") == PrefixCache()


@pytest.mark.parametrize("registry", [SAMPLERS, CACHES], ids=["samplers", "caches"])
def test_every_entry_can_be_made_without_options(registry):
    package = dllm.samplers if registry is SAMPLERS else dllm.cache
    assert [type(package.make(name)) for name in registry] == [*registry.values()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Threshold(1.5), r"threshold=1.5 is not a probability; give a value from 0 \(reveal all\) to 1"),
        (lambda: Threshold(-0.1), "threshold=-0.1 is not a probability"),
        (lambda: Threshold(float("nan")), "threshold=nan is not a probability"),
        (lambda: Factor(0.0), "factor=0.0 must be above 0"),
        (lambda: Factor(float("nan")), "factor=nan must be above 0"),
        (lambda: DualCache(refresh=0), "refresh=0 is not a number of forwards; give 1"),
        (lambda: PrefixCache(refresh=-3), "refresh=-3 is not a number of forwards"),
    ],
)
def test_a_methods_settings_check_themselves(make, message):
    with pytest.raises(DllmError, match=message):
        make()
