"""Recorded window steps. Without a GPU a stand-in records: it calls the function again, and overwrites what it gave."""

import pytest
import torch

import cases
from dllm import generate, stream
from dllm.cache import CACHES
from dllm.graphs import Graphs, fill, padded_rows, padded_width

TAKING_PART = ["prefix:refresh=3", "dual:refresh=5", "dual:refresh=5,skip_decoded=true", "vicinity:refresh=4,look=2"]
TAKING_PART += ["dkv-decode:refresh=4", "dkv-greedy:refresh=4,window=1", *cases.BLOCK_CACHE_NAMES]
MANY = [*cases.PROMPTS, [2, 2], [7], [4, 4, 4]]
"""More prompts than rows in flight, of unequal lengths: rows enter while others are in the middle, and leave."""
COUNTS = ("nfe", "rows", "columns", "refreshes", "steps", "drafted", "flops")


class StandIn:
    """Records as a GPU does, as far as that shows: the same tensor is filled by every replay."""

    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def __call__(self, function):
        out = function().fill_(torch.nan)  # a recording computes nothing
        self.recorded += 1

        def replay():
            self.replayed += 1
            return out.copy_(function())

        return replay


@pytest.fixture
def made(monkeypatch):
    """What records in the test."""
    made = StandIn()
    monkeypatch.setattr("dllm.graphs.recorder", lambda _: made)
    return made


def both(model, *asked, **settings):
    """Generate with recordings and without: the same tokens, in the same forwards. Returns the first."""
    ways = (generate(model, *asked, **cases.SHAPE | {"graphs": graphs} | settings) for graphs in (True, False))
    recorded, plain = ways
    assert torch.equal(recorded.tokens, plain.tokens)
    for name in COUNTS:
        assert torch.equal(getattr(recorded, name), getattr(plain, name)), name
    return recorded


@pytest.mark.parametrize("cache", TAKING_PART)
@pytest.mark.parametrize("shift", [0, 1])
def test_recordings_change_no_token(tiny, made, cache, shift):
    model = tiny(logits_shift=shift, **cases.served(cache))
    both(model, MANY, "random" if "greedy" in cache else "static", cache, batch_size=3, seed=1)
    assert made.replayed >= made.recorded > 0


@pytest.mark.parametrize("cache", ["dual", "prefix", "vicinity:look=2", "exact"])
def test_drafts_are_recorded_too(tiny, made, cache):
    both(tiny(**cases.served(cache)), MANY, "static", cache, batch_size=3, drafts=3)
    assert made.replayed >= made.recorded > 0


def test_twins_have_recordings_of_their_own(tiny, made):
    run = stream(tiny(), MANY, "threshold:threshold=0.6", "dual", **cases.SHAPE, batch_size=2, cfg_scale=0.7)
    assert run.graphs is not None and list(run)
    assert {key[1] for key in run.graphs.shapes} == {*run.states} and made.replayed > 0
    both(tiny(), MANY, "threshold:threshold=0.6", "dual", batch_size=2, cfg_scale=0.7)


def test_an_end_of_text_that_is_written_ahead_is_seen_through_recordings(tiny, made):
    both(tiny(), MANY, "static", "dual", batch_size=3, eotp=0.05, eos_early_stop=True)
    assert made.replayed > 0


@pytest.mark.parametrize(
    ("sampler", "cache", "spec"),
    [
        *(("static", cases.OPTIONS.get(name, name), {}) for name in ("elastic", "sparse", "d2", "none")),
        ("wino", "dual", {}),
    ],
)
def test_what_the_host_decides_on_the_way_is_not_recorded(tiny, made, sampler, cache, spec):
    both(tiny(**spec), MANY, sampler, cache, batch_size=3)
    assert made.recorded == 0


def test_mixtures_of_experts_and_a_cpu_have_no_recordings(tiny):
    assert Graphs.of(tiny()) is None
    assert stream(tiny(), MANY, **cases.SHAPE).graphs is None


def test_a_refresh_is_not_recorded_and_a_shape_not_when_it_first_comes(tiny, made):
    run = stream(tiny(), [5, 5, 5], "static", "dual:refresh=1", **cases.SHAPE)
    list(run)
    assert not run.graphs.shapes
    run, recorded = stream(tiny(), [5, 5, 5], "static", "dual", gen_length=3, block_length=3), []
    for _ in run:
        recorded.append(made.recorded)
    assert recorded == [0, 0, 1]  # a refresh, the first window step, the second


def test_few_shapes_are_kept_and_the_one_last_used_stays(tiny, made, monkeypatch):
    monkeypatch.setattr("dllm.graphs.MOST", 2)
    run = stream(tiny(), MANY, "static", "prefix", **cases.SHAPE, batch_size=3)
    for _ in run:
        assert len(run.graphs.shapes) <= 2
    assert made.replayed > 0
    both(tiny(), MANY, "static", "prefix", batch_size=3)


def test_the_store_never_moves(tiny):
    run = stream(tiny(), MANY, "static", "dual", **cases.SHAPE, batch_size=3)
    [state] = run.states
    before = [stored.data_ptr() for stored in (*state.keys, *state.values)]
    for _ in run:
        assert [stored.data_ptr() for stored in (*state.keys, *state.values)] == before
    assert len(state.keys[0]) == 0  # all rows have left


def test_padding_stores_nothing_that_the_step_does_not(tiny, made):
    def stored(graphs):
        run = stream(tiny(), MANY[:5], "static", "dual:skip_decoded=true", **cases.SHAPE, graphs=graphs)
        for _ in run:
            yield torch.stack([*run.states[0].keys, *run.states[0].values])

    for recorded, plain in zip(stored(True), stored(False), strict=True):
        torch.testing.assert_close(recorded, plain, rtol=0, atol=1e-12)
    assert made.replayed > 0


def test_a_buffer_repeats_the_last_row_and_column():
    buffer = torch.full((4, 5), -1)
    fill(buffer, torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert buffer.tolist() == [[1, 2, 3, 3, 3]] + [[4, 5, 6, 6, 6]] * 3
    fill(buffer, torch.arange(20).view(4, 5))
    assert buffer.flatten().tolist() == [*range(20)]


@pytest.mark.parametrize(("padded", "most"), [(padded_rows, 1 / 4), (padded_width, 1 / 8)])
def test_few_shapes_hold_all_sizes(padded, most):
    sizes = range(1, 513)
    assert all(n <= padded(n) == padded(padded(n)) for n in sizes) and [*map(padded, sizes)] == sorted(
        map(padded, sizes)
    )
    assert len({*map(padded, sizes)}) < 50 and all(padded(n) - n <= n * most for n in sizes if n >= 32)


def test_every_cache_is_recorded_or_looks_at_attention():
    known = {name.partition(":")[0] for name in TAKING_PART} | {"dkv-pd", "none"}
    assert {name for name, cache in CACHES.items() if not cache.attentive} == known


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("drafts", [1, 3])
@pytest.mark.parametrize("cache", ["dual:refresh=5", "exact"])
def test_a_gpu_replays_what_it_recorded(tiny, cache, drafts):
    model = tiny(device="cuda", **cases.served(cache))
    both(model, MANY, "static", cache, batch_size=3, drafts=drafts)
    run = stream(model, MANY, "static", cache, **cases.SHAPE, batch_size=3, drafts=drafts)
    assert list(run) and any(shape.replay for shape in run.graphs.shapes.values())
