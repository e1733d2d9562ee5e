"""What the samplers' papers promise of them, as properties over tiny models and one-step examples."""

from dataclasses import replace

import pytest
import torch

import cases
from dllm import DllmError, Trace, generate
from dllm.cache.base import full_view
from dllm.cache.side import shadow_view
from dllm.canvas import Span
from dllm.samplers import Prophet, make

ASK = {**cases.SHAPE, "seed": 0}
INF = float("inf")
shifts = pytest.mark.parametrize("shift", [0, 1])


def same(model, one, other, **ask):
    first, second = (generate(model, cases.PROMPTS, sampler, **{**ASK, **ask}) for sampler in (one, other))
    assert first.completions == second.completions and torch.equal(first.nfe, second.nfe)


# Strictest and loosest settings


@pytest.mark.parametrize(
    "sampler",
    [
        "threshold:threshold=1",
        "localleap:threshold=1,relaxed_threshold=0",
        "localleap:threshold=1,relaxed_threshold=1",
        "credit:threshold=1,weight=0",
        "klass:kl_threshold=0",
        "wino:threshold=1,threshold_back=1",
        "factor:factor=1e-9",
    ],
)
@shifts
def test_the_strictest_settings_are_one_token_a_step_by_confidence(tiny, sampler, shift):
    for cache in ("none", "dual"):
        same(tiny(logits_shift=shift), sampler, "static", cache=cache)


@pytest.mark.parametrize("sampler", ["dparallel:threshold=0", "eb:gamma=0", "hierarchy:threshold=1,low=1"])
def test_nothing_allowed_is_one_token_a_step(model, sampler):
    assert (generate(model, cases.PROMPTS, sampler, **ASK).nfe == 10).all()


def test_a_threshold_of_0_reveals_the_block(model):
    for sampler in ("threshold", "localleap", "credit", "hierarchy"):
        assert (generate(model, cases.PROMPTS, f"{sampler}:threshold=0", **ASK).nfe == 3).all()


@shifts
def test_prophet_with_an_infinite_gap_is_its_base(tiny, shift):
    model = tiny(logits_shift=shift)
    for base in cases.SAMPLER_NAMES:
        if "prophet" not in base:
            same(model, Prophet(base, thresholds=(INF, INF, INF)), base, temperature=0.5)
            same(model, Prophet(base, 3, thresholds=(INF, INF, INF)), base, cache="none")


def test_localleap_without_a_radius_or_without_relaxation_is_the_threshold(model):
    for sampler in ("localleap:threshold=0.6,radius=0", "localleap:threshold=0.6,relaxed_threshold=0.6"):
        same(model, sampler, "threshold:threshold=0.6")


def test_credit_of_no_weight_is_the_threshold(model):
    same(model, "credit:threshold=0.6,weight=0", "threshold:threshold=0.6")


def test_a_window_as_wide_as_the_answer_is_the_base_on_one_block(model):
    same(model, "sliding:base=klass,window=10", "klass", block_length=10)


def test_a_window_slides_to_the_first_masks(model):
    generate(model, [3, 1, 4], "sliding:base=static,window=3", gen_length=12, observers=[trace := Trace()])
    left = [*range(3, 15)]
    for change in trace.changes:
        assert change["column"] in left[:3]
        left.remove(change["column"])


# Prophet


def test_prophet_reveals_all_that_is_left_once_the_answer_has_settled(model):
    made = generate(model, cases.PROMPTS, Prophet("static", 2, 3, (0.0, 0.0, 0.0)), "none", **ASK)
    assert (made.nfe == 1).all()
    block = generate(model, cases.PROMPTS, Prophet("static", thresholds=(0.0, 0.0, 0.0)), "none", **ASK)
    assert (block.nfe == 3).all()  # without a region, what is left of the block


def test_prophets_thresholds_fall_with_the_phase():
    for step, want in ((83, 7.5), (84, 5.0), (170, 5.0), (171, 2.5), (255, 2.5)):  # steps counted from 1: 84, 85, ...
        p = cases.example(step=torch.tensor([step]), steps=torch.tensor([256]))
        gap = float(p.gap[p.masked].mean())
        for k, threshold in enumerate((7.5, 5.0, 2.5)):
            below, above = ([INF] * 3 for _ in range(2))
            below[k], above[k] = gap - 1e-6, gap + 1e-6
            settled = not (Prophet(thresholds=below)(p) == cases.MASK).any()
            assert settled == (threshold == want)
            assert (Prophet(thresholds=above)(p) == cases.MASK).any()


def test_prophets_region_counts_decided_columns_and_columns_of_other_blocks():
    p = cases.example()
    p = replace(p, block=p.span.columns < 20)
    gap = float(p.gap[0, 5:8].mean())
    for slack, settled in ((-1e-6, True), (1e-6, False)):
        after = Prophet(answer_start=5, answer_length=3, thresholds=[gap + slack] * 3)(p)
        assert settled == (not (after == cases.MASK).any())


def test_prophet_over_wino_leaves_nothing_masked_once_it_has_settled():
    p = cases.example()
    p = replace(p, shadow=torch.zeros_like(p.confidence))
    assert not (Prophet("wino", thresholds=[0.0] * 3)(p) == cases.MASK).any()
    assert (Prophet("wino", thresholds=[INF] * 3)(p) == cases.MASK).sum() == 4  # 2 left, 2 taken back


def test_numbers_wider_than_the_answer_are_as_wide_as_it(model):
    same(model, f"localleap:radius={10**30}", "localleap:radius=10")
    same(model, f"sliding:window={10**30}", "sliding:window=10")


def test_prophet_over_localleap_is_one_line(model):
    made = generate(model, cases.PROMPTS, "prophet:base=localleap", **ASK)
    assert made.nfe.max() <= 10 and make("prophet:base=localleap:radius=2").base == make("localleap:radius=2")


# KLASS and credit


def test_klass_waits_until_a_distribution_has_stopped_moving():
    p = cases.example(quota=1)
    sampler = make("klass:conf_threshold=0.7,kl_threshold=0.01,history=2")
    counts = []
    for step in range(4):
        number = torch.tensor([step])
        at = replace(p, block_step=number, recall=replace(p.recall, fresh=number == 0))
        counts.append(int((sampler(at) != p.current).sum()))
    assert counts == [1, 1, 4, 4]  # two steps of no change, then all above 0.7
    moved = replace(p, logits=p.logits.roll(1, -1), recall=replace(p.recall, fresh=number < 0))
    assert int((sampler(replace(moved, block_step=number + 1)) != p.current).sum()) == 1


def test_credit_grows_with_repetition_and_fades():
    p = cases.example()
    sampler = make("credit:threshold=0.85,weight=0.7")
    counts = []
    for step in range(6):
        number = torch.tensor([step])
        at = replace(p, block_step=number, recall=replace(p.recall, fresh=number == 0))
        counts.append(int((sampler(at) != p.current).sum()))
    assert counts == sorted(counts) and counts[0] < counts[-1]
    credit = p.recall.memory.kept["credit"][0][0]
    column, token = 0, 0
    want = sum(0.8**age for age in range(6)) * p.logits.softmax(-1)[0, column].max() ** 0.2
    torch.testing.assert_close(credit[column, token], want.to(credit.dtype))
    assert not credit[2].any()  # a decided column earns nothing


# WINO


def test_wino_takes_back_what_its_shadow_doubts_but_less_than_it_revealed():
    p = cases.example(decided=[2, 3, 6])
    p = replace(p, shadow=torch.tensor([[1.0, 1.0, 0.5, 0.2, 1.0, 1.0, 0.95, 1.0]], dtype=torch.float64))
    sampler = make("wino")
    after = sampler(p)
    assert (after[0, [2, 3]] == cases.MASK).all() and after[0, 6] == 50
    count = int(p.recall.memory.kept["count"][0])
    assert count == 3  # columns 0, 1 and 5
    later = replace(p, recall=replace(p.recall, fresh=torch.tensor([False])))
    p.recall.memory.kept["count"][0].fill_(2)
    assert (sampler(later)[0, [2, 3]] == torch.tensor([50, cases.MASK])).all()  # the more doubtful one
    single = cases.example(decided=[0, 1, 2, 3, 5, 6])
    single = replace(single, shadow=torch.zeros_like(single.confidence))
    assert not (sampler(single)[:, single.current[0] == 50] == cases.MASK).any()  # one token: nothing is taken back


@shifts
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_wino_ends_although_it_takes_back(tiny, cache, shift):
    taken = 0
    for back in (0.3, 0.9, 1.0):
        made = generate(
            tiny(logits_shift=shift),
            cases.PROMPTS,
            f"wino:threshold=0.1,threshold_back={back}",
            cache,
            gen_length=24,
            block_length=12,
            eos_early_stop=False,
            observers=[trace := Trace()],
        )
        assert (made.nfe <= 24).all() and not any(39 in c for c in made.completions)
        taken += sum(change["token"] == 39 for change in trace.changes)
    assert taken > 20


def test_given_tokens_are_never_taken_back(model):
    ask = {**ASK, "constraints": {1: [7, 8], 5: [9]}}
    sampler = "wino:threshold=0.1,threshold_back=1"
    made = generate(model, cases.PROMPTS, sampler, "none", observers=[trace := Trace()], **ask)
    assert all((c[1], c[2], c[5]) == (7, 8, 9) for c in made.completions)
    given = {(row, len(p) + k) for row, p in enumerate(cases.PROMPTS) for k in (1, 2, 5)}
    assert not given & {(change["request"], change["column"]) for change in trace.changes}


@shifts
@pytest.mark.parametrize("attention", ["full", "block"])
def test_a_shadow_is_a_row_behind_the_text_that_all_but_shadows_ignore(tiny, attention, shift):
    """Against a forward with a dense mask: the shadows behind the canvas, at the places of the rows that predict."""
    model = tiny(attention=attention, block_length=4, logits_shift=shift)
    tokens = torch.randint(0, 38, (2, 12))
    span = Span.between(torch.tensor([4, 4]), torch.tensor([8, 7]), 4)
    view = shadow_view(full_view(model.spec, [12, 9]), model.spec, span, [12, 9], first=12)
    padded = torch.nn.functional.pad(tokens, (0, 4), value=39)
    both = Span(torch.cat([span.columns] * 2, 1), torch.cat([span.valid] * 2, 1))
    got = model(padded, view, both)
    torch.testing.assert_close(got[:, :4], model(tokens, full_view(model.spec, [12, 9]), span))
    for row, length in enumerate((12, 9)):
        for i in range(int(span.valid[row].sum())):
            want = dense(model, tokens[row, :length], span.columns[row][span.valid[row]], i)
            torch.testing.assert_close(got[row, 4 + i], want)


def dense(model, tokens, columns, i):
    """The i-th shadow's logits from one forward over text and shadows with a mask for every pair."""
    spec, n, w = model.spec, len(tokens), len(columns)
    at = columns - spec.logits_shift
    place = torch.cat([torch.arange(n), at])
    reach = spec.reach(place[None])
    sees = torch.ones(n + w, n + w, dtype=torch.bool) if reach is None else place[None] <= reach[0][:, None]
    sees[:n, n:] = False
    for k, column in enumerate(columns.tolist()):
        sees[n + k, column] = False

    class Dense:
        rows = torch.arange(n + w)[None]
        positions = place[None]
        layers = range

        def enter(self, _layer, h):
            return h

        def attend(self, _layer, q, k, v, by):
            from dllm.cache.base import attention
            from dllm.kernels.rotary import rotate

            return attention(rotate(q, by), rotate(k, by), v, sees[None, None])

        def find(self, _span):
            return torch.tensor([[n + i]])

    tokens = torch.cat([tokens, torch.full((w,), 39)])[None]
    return model(tokens, Dense(), Span(columns[None, :1], torch.ones(1, 1, dtype=torch.bool)))[0, 0]


def test_a_foreign_model_has_no_shadows(tiny):
    with pytest.raises(DllmError, match=r"Wino\(.*needs shadow rows, which this model cannot compute"):
        generate(tiny(cacheable=False), [3, 1], "wino", gen_length=4)


# Bad input


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("localleap:radius=-1", "radius=-1 must be a whole number of at least 0: columns on either side"),
        ("localleap:relaxed_threshold=2", "relaxed_threshold=2.0 is not a probability"),
        ("dparallel:threshold=-0.5", "threshold=-0.5 must be a finite number of at least 0: an entropy in nats"),
        ("eb:gamma=-1", "gamma=-1.0 must be a finite number of at least 0"),
        ("klass:history=0", "history=0 must be a whole number of at least 1"),
        ("klass:kl_threshold=-1", "kl_threshold=-1.0 must be a finite number of at least 0"),
        ("klass:conf_threshold=1.5", "conf_threshold=1.5 is not a probability"),
        ("credit:decay=1.5", "decay=1.5 is not a probability"),
        ("credit:weight=-1", "weight=-1.0 must be a finite number of at least 0"),
        ("credit:weight=inf", "weight=inf must be a finite number"),
        ("prophet:base=none", "unknown sampler 'none'"),
        ("hierarchy:low=-1", "low=-1.0 is not a probability"),
        ("wino:threshold_back=9", "threshold_back=9.0 is not a probability"),
        ("sliding:window=0", "window=0 must be a whole number of at least 1"),
        ("sliding:base=slidng", "unknown sampler 'slidng'; did you mean 'sliding'"),
        ("prophet:thresholds=7.5/5", "must be 3 numbers: early, middle and late"),
        ("prophet:thresholds=7.5/5/x", "prophet:thresholds=x is not of type float"),
        ("prophet:phases=0.5", "must be 2 numbers: two shares of the steps"),
        ("prophet:phases=0.7/0.3", "must be two rising shares of the steps"),
        ("prophet:answer_start=-1", "answer_start=-1 must be a whole number of at least 0"),
        ("prophet:answer_length=0", "answer_length=0 must be a whole number of at least 1"),
    ],
)
def test_options_that_cannot_be_are_named(sampler, message):
    with pytest.raises(DllmError, match=message):
        make(sampler)


def test_an_answer_region_lies_inside_the_answer(model):
    for sampler in ("prophet:answer_start=6", "sliding:base=prophet:answer_start=6"):
        with pytest.raises(DllmError, match="columns 6 to 10, lies outside the 10 generated ones; give a smaller"):
            generate(model, [3], sampler, gen_length=10)


@pytest.mark.usefixtures("unchecked")
def test_a_base_is_a_name_or_a_sampler():
    with pytest.raises(DllmError, match="base=3 is neither a name nor a Sampler; there are: static"):
        Prophet(3)


def test_what_is_kept_of_a_column_is_found_again_where_it_stands_among_others():
    """A scope of 4 columns, of which a cache leaves some out: the second prediction has the columns 2 and 1 of it."""
    recall = replace(cases.example().recall, place=torch.tensor([[0, 2, 4]]), width=4, fresh=torch.tensor([True]))
    recall.set("seen", torch.tensor([[5.0, 7.0, 9.0]]))  # the third is padding
    recall.set("count", torch.tensor([3]))
    later = replace(recall, place=torch.tensor([[2, 1]]), fresh=torch.tensor([False]))
    assert later.get("seen", torch.zeros(1, 2), -1).tolist() == [[7.0, -1.0]]
    assert later.get("count", torch.zeros(1).long(), -1).tolist() == [3]
    anew = replace(later, fresh=torch.tensor([True]))
    assert anew.get("seen", torch.zeros(1, 2), -1).tolist() == [[-1.0, -1.0]]
    anew.set("seen", torch.tensor([[1.0, 2.0]]))
    everything = replace(recall, place=torch.arange(4)[None], fresh=torch.tensor([False]))
    assert everything.get("seen", torch.zeros(1, 4), -1).tolist() == [[-1.0, 2.0, 1.0, -1.0]]
