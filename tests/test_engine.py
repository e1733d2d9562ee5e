"""Properties of the loop that hold for every sampler and every cache, on tiny random models in float64."""

import copy
from collections import Counter

import pytest
import torch

import cases
from dllm import DllmError, Trace, generate, stream
from dllm.cache import CACHES, DualCache
from dllm.samplers import SAMPLERS, Sampler, Static, Threshold

VARIANTS = {
    "plain": ({}, {}),
    "shifted": ({"logits_shift": 1, "seed": 1}, {"batch_size": 2, "temperature": 0.8}),
    "guided": ({"logits_shift": 1, "seed": 3}, {"batch_size": 3, "cfg_scale": 0.7, "steps": 7}),
}
"""What the model is, and what is asked of it."""

every_sampler = pytest.mark.parametrize("sampler", cases.SAMPLER_NAMES)
FULL_CACHES, ALL_CACHES = (
    [cache for cache in caches if cases.legal("static", cache)]
    for caches in (cases.CACHE_NAMES, [*cases.CACHE_NAMES, *cases.BLOCK_CACHE_NAMES])
)
full_cache = pytest.mark.parametrize("cache", FULL_CACHES)
every_cache = pytest.mark.parametrize("cache", ALL_CACHES)
every_pair = pytest.mark.parametrize(("sampler", "cache"), cases.ALL_PAIRS)
full_pair = pytest.mark.parametrize(("sampler", "cache"), cases.PAIRS)
"""Of models of full attention, whose blocks begin with the answer."""


every_case = pytest.mark.parametrize(
    ("sampler", "cache", "variant"),
    [(*pair, [*VARIANTS][cases.turn(*pair, len(VARIANTS))]) for pair in cases.ALL_PAIRS],
)
"""Every pair in one variant."""
shifts = pytest.mark.parametrize("shift", [0, 1])


@every_case
def test_a_row_does_not_depend_on_its_batch(tiny, sampler, cache, variant):
    spec, asked = VARIANTS[variant]
    model, settings = tiny(**spec, **cases.served(cache)), {**cases.SHAPE, "seed": 5, **asked}
    batch = generate(model, cases.PROMPTS, sampler, cache, **settings)
    for row in (1, 2):  # the longest and the shortest
        alone = generate(model, cases.PROMPTS[row], sampler, cache, **settings)
        assert batch.completions[row] == alone.completions[0]
        assert (batch.nfe[row], batch.rows[row]) == (alone.nfe[0], alone.rows[0])


@every_case
def test_every_forward_reveals_and_the_steps_add_up(tiny, sampler, cache, variant):
    spec, asked = VARIANTS[variant]
    model = tiny(**spec, **cases.served(cache))
    run = stream(model, cases.PROMPTS, sampler, cache, observers=[trace := Trace()], **{**cases.SHAPE, **asked})
    took_part = Counter()
    for step in run:
        assert (step.changed & (step.after != 39)).any(1).all()
        took_part.update(step.requests)
    made = run.result()
    assert took_part == Counter(dict(enumerate(made.nfe.tolist()))) and made.nfe.max() <= 10
    # Every token of the answers is revealed exactly once, and once more for each time that it is masked again.
    taken_back = sum(change["token"] == 39 for change in trace.changes)
    assert len(trace.changes) == 10 * len(cases.PROMPTS) + 2 * taken_back
    assert not taken_back or run.needs.revoking


@every_sampler
def test_the_steps_of_a_stream_rebuild_the_tokens(model, sampler):
    run = stream(model, cases.PROMPTS, sampler, **cases.SHAPE, seed=0)
    canvas = [[*prompt, *[39] * 10] for prompt in cases.PROMPTS]
    for index, step in enumerate(run):
        assert step.index == index and step.seconds > 0
        for row, place in step.changed.nonzero().tolist():
            request, column = step.requests[row], int(step.span.columns[row, place])
            assert canvas[request][column] == step.before[row, place] and (
                39 in (step.before[row, place], step.after[row, place])
            )
            canvas[request][column] = int(step.after[row, place])
    made = run.result()
    assert [row[len(p) :] for row, p in zip(canvas, cases.PROMPTS, strict=True)] == made.completions
    assert made.forwards == index + 1


@pytest.mark.parametrize(("sampler", "cache", "shift"), [(*pair, cases.turn(*pair, 2)) for pair in cases.REFRESHED])
def test_refreshing_at_every_forward_is_no_cache(tiny, sampler, cache, shift):
    model = tiny(logits_shift=shift)
    plain, stored = (
        generate(model, cases.PROMPTS, sampler, c, **cases.SHAPE, seed=0, temperature=0.5) for c in ("none", cache)
    )
    assert torch.equal(plain.tokens, stored.tokens) and torch.equal(plain.nfe, stored.nfe)
    assert torch.equal(plain.rows, stored.rows)


@full_pair
def test_blocks_are_finished_from_left_to_right(model, sampler, cache):
    generate(model, cases.PROMPTS, sampler, cache, **cases.SHAPE, seed=0, observers=[trace := Trace()])
    for request, prompt in enumerate(cases.PROMPTS):
        blocks = [(c["column"] - len(prompt)) // 4 for c in trace.changes if c["request"] == request]
        if "prophet" not in sampler:  # once the answer has settled, all that is left is revealed
            assert blocks == sorted(blocks) and set(blocks) == {0, 1, 2}


@every_pair
def test_a_mask_in_a_prompt_is_a_token_like_any_other(tiny, sampler, cache):
    model = tiny(**cases.served(cache))
    prompts = [[3, 39, 4], [39], [39, 39, 1, 5]]
    made = generate(model, prompts, sampler, cache, **cases.SHAPE, seed=0, cfg_scale=0.5)
    for row, prompt in enumerate(prompts):
        assert made.tokens[row, : len(prompt)].tolist() == prompt and 39 not in made.completions[row]


@every_sampler
def test_the_same_seed_gives_the_same_tokens_and_another_gives_others(model, sampler):
    first, again, other = (
        generate(model, cases.PROMPTS, sampler, "dual", **cases.SHAPE, temperature=1.0, seed=seed) for seed in (3, 3, 4)
    )
    assert first.completions == again.completions != other.completions and first.seed == 3


def test_without_a_seed_one_is_drawn_and_told(model):
    ask = {**cases.SHAPE, "temperature": 1.0}
    drawn = generate(model, cases.PROMPTS, **ask)
    assert drawn.completions == generate(model, cases.PROMPTS, **ask, seed=drawn.seed).completions


def test_without_a_temperature_the_seed_does_not_matter(model):
    one, two = (generate(model, cases.PROMPTS, **cases.SHAPE, seed=seed) for seed in (1, 2))
    assert one.completions == two.completions


def test_a_random_order_depends_on_the_seed(model):
    orders = []
    for seed in (1, 1, 2):
        generate(model, [3, 1, 4], "static", remasking="random", gen_length=8, seed=seed, observers=[trace := Trace()])
        orders.append([change["column"] for change in trace.changes])
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])


def test_the_same_prompt_asked_twice_is_drawn_twice(model):
    ask = {**cases.SHAPE, "temperature": 1.0, "seed": 0}
    samples = generate(model, [3, 1, 4], **ask, num_samples=3)
    listed = generate(model, [[3, 1, 4]] * 3, **ask)
    assert samples.completions == listed.completions and len(set(map(tuple, samples.completions))) == 3
    named = generate(model, [[3, 1, 4]] * 2, **ask, request_ids=[7, 7])
    assert named.completions[0] == named.completions[1]


@full_cache
def test_a_sampler_is_told_the_steps_of_its_row(model, cache):
    seen = []

    class Watch(Static):
        def __call__(self, p):
            seen.append([p.step.tolist(), p.block_step.tolist()])
            return super().__call__(p)

    for step in stream(model, cases.PROMPTS, Watch(), cache, **cases.SHAPE, batch_size=2):
        seen[-1].append(step.requests)
    of_rows = {}
    for steps, block_steps, requests in seen:
        for row, *counts in zip(requests, steps, block_steps, strict=True):
            of_rows.setdefault(row, []).append(counts)
    assert of_rows == {row: [[i, i % 4] for i in range(10)] for row in range(4)}


@pytest.mark.parametrize(
    ("cache", "steps", "gen_length", "block_length", "sampler"),
    [
        (cache, *shape, ("static", "random")[(i + j) % 2])
        for i, cache in enumerate(FULL_CACHES)
        for j, shape in enumerate([(4, 16, 8), (6, 24, 8), (5, 10, 4), (10, 10, 4)])
    ],
)
def test_a_schedule_of_s_steps_runs_s_forwards(model, sampler, cache, steps, gen_length, block_length):
    shape = {"gen_length": gen_length, "block_length": block_length, "eos_early_stop": False}
    assert generate(model, cases.PROMPTS, sampler, cache, steps=steps, **shape).nfe.tolist() == [steps] * 4


def test_a_schedule_never_spends_a_forward_on_nothing(model):
    assert generate(model, [3], "static", steps=50, **cases.SHAPE).nfe == 10  # more steps than tokens
    assert generate(model, [3], "static", steps=1, **cases.SHAPE).nfe == 3  # fewer steps than blocks


@pytest.mark.parametrize(
    ("cache", "sampler", "shift"),
    [
        (cache, sampler, (i + j) % 2)
        for i, cache in enumerate(ALL_CACHES)
        for j, sampler in enumerate(["threshold:threshold=1.0", "factor:factor=1e-9"])
    ],
)
def test_the_strictest_rules_are_one_token_a_step(tiny, cache, sampler, shift):
    model = tiny(logits_shift=shift, **cases.served(cache))
    strict, one = (generate(model, cases.PROMPTS, s, cache, **cases.SHAPE) for s in (sampler, "static"))
    assert torch.equal(strict.tokens, one.tokens) and strict.nfe.tolist() == [10] * 4


def test_the_loosest_rules_reveal_a_block_at_once(model):
    for sampler in ("threshold:threshold=0", "factor:factor=1e9"):
        assert generate(model, cases.PROMPTS, sampler, **cases.SHAPE).nfe.tolist() == [3] * 4


def rows_of(cache, prompt, taken, shift, gen_length=10, block_length=4):
    """Columns that a cache computes for a row that took so many forwards in each of its blocks."""
    whole, total = prompt + gen_length, 0
    for block, forwards in enumerate(taken):
        start = prompt + block * block_length
        stop = min(start + block_length, whole)
        first = max(start - shift, 0)
        later = {"none": whole, "prefix": whole - first, "dual": stop - first}[cache]
        total += whole + (forwards - 1) * later
    return total


@shifts
@pytest.mark.parametrize("guidance", [0.0, 0.5])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_cache_computes_what_its_name_says(tiny, cache, guidance, shift):
    ask = {**cases.SHAPE, "cfg_scale": guidance, "steps": 8}
    made = generate(tiny(logits_shift=shift), cases.PROMPTS, "static", cache, **ask)
    want = [(1 + (guidance > 0)) * rows_of(cache, len(p), [3, 3, 2], shift) for p in cases.PROMPTS]
    assert made.rows.tolist() == want and made.nfe.tolist() == [8] * 4


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_refresh_that_finishes_its_block_is_its_only_forward(model, cache):
    made = generate(model, cases.PROMPTS, "threshold:threshold=0", cache, **cases.SHAPE)
    assert made.nfe.tolist() == [3] * 4 and made.rows.tolist() == [3 * (len(p) + 10) for p in cases.PROMPTS]


@pytest.mark.parametrize("cache", [cache for cache in FULL_CACHES if cache != "none"])
def test_a_cache_made_for_full_attention_is_refused_by_a_block_causal_model(tiny, cache):
    with pytest.raises(DllmError, match=r"was made for full attention, and this model's is block; give 'exact' or"):
        generate(tiny(**cases.BLOCKS), [3], "static", cache, gen_length=4)


@pytest.mark.parametrize("cache", cases.BLOCK_CACHE_NAMES)
def test_a_cache_of_finished_blocks_is_refused_by_a_model_of_full_attention(model, cache):
    with pytest.raises(DllmError, match=r"was made for block attention, and this model's is full; give 'dual'"):
        generate(model, [3], "static", cache, gen_length=4)


@full_pair
def test_what_a_cache_spares_is_told(tiny, sampler, cache):
    model = tiny(dtype=torch.float32)
    made = generate(model, cases.PROMPTS, sampler, cache, **cases.SHAPE, seed=0, batch_size=2)
    length = torch.tensor([len(p) + 10 for p in cases.PROMPTS])
    assert (made.rows <= made.columns).all() and (made.columns >= made.nfe * length).all()
    assert made.reused == 1 - int(made.rows.sum()) / int(made.columns.sum()) and 0 <= made.reused < 1
    assert (made.refreshes >= 1).all() and (made.refreshes <= made.nfe).all()
    if cache == "none":
        assert made.reused == 0 and made.kv_bytes == 0 and torch.equal(made.refreshes, made.nfe)
    else:  # 2 rows of 17 columns: 2 layers, 2 kv heads of width 8, keys and values, 4 bytes
        # and for elastic 1 layer's inputs of width 32, 2 layers' 4 query heads
        more = (1 * 32 + 2 * 4 * 8) * 4 if "elastic" in cache else 0
        assert made.kv_bytes == 2 * 17 * (2 * 2 * 8 * 2 * 4 + more)
    assert "wino" in sampler or torch.equal(made.columns, made.nfe * length)


def test_a_cache_that_is_refreshed_always_spares_nothing(model):
    assert generate(model, cases.PROMPTS, "threshold:threshold=0", "dual", **cases.SHAPE).reused == 0


def test_a_batch_shares_its_forwards(model):
    alone = sum(generate(model, p, "static", "none", **cases.SHAPE).forwards for p in cases.PROMPTS)
    assert generate(model, cases.PROMPTS, "static", "none", **cases.SHAPE).forwards == alone // 4 == 10


def test_the_models_own_cacheability_chooses_the_cache(tiny):
    prompts = [[1, 5, 9, 2, 6, 5, 3]]
    cached, uncached = (generate(tiny(cacheable=c), prompts, "static", **cases.SHAPE).rows for c in (True, False))
    assert uncached == 10 * 17 and cached == generate(tiny(), prompts, "static", DualCache(), **cases.SHAPE).rows
    with pytest.raises(DllmError, match=r"cannot use DualCache.*cache='none'"):
        generate(tiny(cacheable=False), prompts, cache="dual")


@every_sampler
def test_a_row_stops_where_all_before_its_end_of_text_is_decided(tiny, sampler):
    ask = {"gen_length": 24, "block_length": 8, "seed": 0}
    usual = generate(tiny(), cases.PROMPTS, sampler, "none", **ask).completions
    stopped = 0
    for eos in {answer[9] for answer in usual}:  # let the text end in the second block
        model = tiny(eos_ids=(eos, 38))
        whole, short = (generate(model, cases.PROMPTS, sampler, "none", **ask, eos_early_stop=e) for e in (False, True))
        for row, (long, cut) in enumerate(zip(whole.completions, short.completions, strict=True)):
            end = next((i for i, t in enumerate(long) if t in (eos, 38)), 24)
            assert cut[: end + 1] == long[: end + 1] and set(cut[end + 1 :]) <= {eos}
            assert short.answer_tokens[row] == whole.answer_tokens[row] == end
            assert short.nfe[row] < whole.nfe[row] if end < 16 else short.nfe[row] <= whole.nfe[row]
            stopped += end < 16
    assert stopped >= 4


def test_guards_against_the_end_of_text(tiny):
    model, traces = tiny(eos_ids=(31,)), []  # 31 is half of this answer
    for guard in ({}, {"logits_eos_inf": True}, {"confidence_eos_eot_inf": True}):
        ask = {"gen_length": 16, "eos_early_stop": False, **guard}
        generate(model, [3, 1, 4], "static", **ask, observers=[trace := Trace()])
        traces.append(trace.changes)
    plain, never, last = ([change["token"] for change in changes] for changes in traces)
    assert 31 not in never and plain.index(31) < last.index(31)
    assert all((change["confidence"] == 0) == (change["token"] == 31) for change in traces[2])


@every_cache
def test_a_model_of_nan_is_an_error_that_names_the_prompt(tiny, cache):
    model = copy.deepcopy(tiny(**cases.served(cache)))
    model.head.weight[7, 3] = torch.nan
    with pytest.raises(DllmError, match=r"NaN logits for prompt 0 at step 1.*torch\.float64"):
        generate(model, cases.PROMPTS, "threshold", cache, **cases.SHAPE)


def test_nan_in_the_last_step_is_an_error_too(tiny):
    model = copy.deepcopy(tiny())
    model.norm.weight[3] = torch.nan
    with pytest.raises(DllmError, match="NaN logits"):
        generate(model, [3, 1, 4], "threshold:threshold=0", gen_length=4)


def test_a_sampler_that_reveals_nothing_is_stopped(model):
    class Idle(Sampler):
        def __call__(self, p):
            return p.current

        def __repr__(self):
            return "Idle()"

    with pytest.raises(RuntimeError, match=r"Idle\(\) revealed nothing in a step of prompt 0"):
        generate(model, cases.PROMPTS, Idle(), **cases.SHAPE)


def test_a_sampler_without_a_rule_says_so(model):
    with pytest.raises(NotImplementedError, match="Sampler does not say what to reveal"):
        generate(model, [3], Sampler(), gen_length=4)


def test_an_unfinished_run_has_no_result(model):
    run = stream(model, cases.PROMPTS, **cases.SHAPE)
    next(iter(run))
    with pytest.raises(RuntimeError, match="0 of 4 rows are finished; take all steps first"):
        run.result()


def test_a_stream_that_was_left_goes_on(model):
    ask = {**cases.SHAPE, "gen_length": 12}
    run = stream(model, cases.PROMPTS, "threshold:threshold=0.6", "dual", **ask)
    while len(run.schedule.finished) < 4:
        for _ in run:
            break
    whole = generate(model, cases.PROMPTS, "threshold:threshold=0.6", "dual", **ask)
    assert run.result().completions == whole.completions and torch.equal(run.result().nfe, whole.nfe)


def test_options_alone_choose_the_sampler_that_has_them(model):
    for options, sampler in (
        ({"radius": 1, "threshold": 0.6}, "localleap:radius=1,threshold=0.6"),
        ({"window": 3, "base": "static"}, "sliding:window=3,base=static"),
        ({"threshold": 0.6}, "threshold:threshold=0.6"),
    ):
        alone, named = generate(model, [3], **cases.SHAPE, **options), generate(model, [3], sampler, **cases.SHAPE)
        assert alone.completions == named.completions and torch.equal(alone.nfe, named.nfe)
    with pytest.raises(DllmError, match="no sampler has the options factor, radius together"):
        generate(model, [3], factor=1.0, radius=2)


def test_a_name_that_is_suggested_is_understood(model):
    assert generate(model, [3], alg="static", gen_length=4).nfe == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "treshold"}, "unknown sampler 'treshold'; did you mean 'threshold'"),
        ({"sampler": "xyz"}, r"unknown sampler 'xyz'; there are: .*static"),
        ({"cache": "duel"}, "unknown cache 'duel'; did you mean 'dual'"),
        ({"gen_lenght": 8}, "unknown argument 'gen_lenght'; did you mean 'gen_length'"),
        ({"remasking": "randon"}, "unknown remasking 'randon'; did you mean 'random'"),
        ({"sampler": "factor", "remasking": "random"}, r"remasking='random' .* static schedule; Factor\(factor=1.0\)"),
        ({"gen_length": 126}, "prompt 0 of 3 tokens and gen_length=126 make 129; the model's context is 128"),
        ({"prompts": [[3], [1] * 120], "gen_length": 9}, "prompt 1 of 120 tokens and gen_length=9 make 129"),
        ({"mask_id": 40, "gen_length": 8}, "mask_id=40 is outside the vocabulary of 40 tokens"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(model, arguments, message):
    with pytest.raises(DllmError, match=message):
        generate(model, **{"prompts": [3, 1, 4], **arguments})


def test_models_that_cannot_fill_masks_are_refused(tiny):
    with pytest.raises(DllmError, match="a causal model predicts one next token"):
        generate(tiny(attention="causal"), [3])
    with pytest.raises(DllmError, match=r"no mask token; give mask_id="):
        generate(tiny(mask_id=None), [3], gen_length=8)


def test_another_mask_id_can_be_given(tiny):
    ours, theirs = (generate(tiny(mask_id=m), [3, 1], gen_length=8, mask_id=39) for m in (39, None))
    assert ours.completions == theirs.completions


@pytest.mark.parametrize("alias", ["max_new_tokens", "max_tokens", "gen_len"])
def test_other_projects_names_are_understood(model, alias):
    ours = generate(model, cases.PROMPTS, "static", gen_length=8, block_length=4, steps=4)
    theirs = generate(model, cases.PROMPTS, "low_confidence", **{alias: 8}, block_size=4, diffusion_steps=4)
    assert torch.equal(ours.tokens, theirs.tokens) and theirs.nfe.tolist() == [4] * 4


def test_samplers_and_caches_are_given_by_name_or_as_objects(model):
    by_name = generate(model, cases.PROMPTS, "static", "dual", **cases.SHAPE)
    assert by_name.completions == generate(model, cases.PROMPTS, Static(), DualCache(), **cases.SHAPE).completions
    assert SAMPLERS["static"] is Static and CACHES["dual"] is DualCache


@every_cache
def test_a_model_that_is_being_trained_can_generate(tiny, cache):
    trained = tiny(seed=1, **cases.served(cache))
    want = generate(trained, cases.PROMPTS, "static", cache, **cases.SHAPE).completions
    trained.requires_grad_(True)
    try:
        made = generate(trained, cases.PROMPTS, "static", cache, **cases.SHAPE)
    finally:
        trained.requires_grad_(False)
    assert made.completions == want


def test_logits_eos_inf_leaves_the_end_of_turn(tiny):
    answers = generate(tiny(eos_ids=(38, 3)), cases.PROMPTS, "static", logits_eos_inf=True, **cases.SHAPE).completions
    assert not any(38 in answer for answer in answers)
    one = generate(tiny(eos_ids=(38,)), cases.PROMPTS, "static", logits_eos_inf=True, **cases.SHAPE).completions
    assert answers == one


def test_the_arguments_of_other_projects_choose_sampler_and_cache(model):
    def same(theirs, sampler, cache):
        made = generate(model, cases.PROMPTS, **cases.SHAPE, **theirs)
        want = generate(model, cases.PROMPTS, sampler, cache, **cases.SHAPE)
        return made.completions == want.completions and torch.equal(made.rows, want.rows)

    assert same({"threshold": 0.5}, "threshold:threshold=0.5", "dual")
    assert same({"factor": 0.5, "use_cache": True}, "factor:factor=0.5", "prefix")
    assert same({"use_cache": True, "dual_cache": True, "threshold": None}, "threshold", "dual")
    assert same({"use_cache": False}, "threshold", "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "factor", "alg": "static"}, "sampler='factor' and alg='static' say the same"),
        ({"max_new_tokens": 8, "max_tokens": 9}, "gen_length is given twice, as 8 and as max_tokens=9"),
        ({"gen_length": 4, "max_new_tokens": 8}, "gen_length is given twice, as 4 and as max_new_tokens=8"),
        ({"sampler": Threshold(), "threshold": 0.5}, r"threshold must be given to Threshold\(threshold=0.9\) itself"),
        ({"sampler": "threshold:threshold=0.4", "threshold": 0.5}, "threshold of sampler threshold is given twice"),
        ({"cache": "none", "use_cache": True}, "cache='none' and use_cache say the same"),
        ({"sampler": 3}, "sampler=3 is neither a name nor a Sampler; there are: static"),
        ({"cache": 3}, "cache=3 is neither a name nor a Cache; there are: none"),
        ({"eos_early_stop": "no"}, "eos_early_stop='no' must be True or False"),
        ({"mask_id": "39"}, "mask_id='39' must be a token id"),
        ({"mask_id": 40, "gen_length": 4}, "mask_id=40 is outside the vocabulary of 40 tokens"),
        ({"stop": [5]}, r"stop=\[5\] must be a string or a list of strings"),
        ({"seed": True}, "seed=True must be a whole number"),
        ({"seed": 1 << 63}, "must be a whole number from 0"),
        ({"temperature": "warm"}, "temperature='warm' must be 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_arguments_that_contradict_or_are_of_another_type_are_named(model, arguments, message):
    with pytest.raises(DllmError, match=message):
        generate(model, [3], **arguments)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_model_is_told_how_to_become_one():
    with pytest.raises(DllmError, match=r"Linear is no model of ours; dllm.models.hf.wrap opens"):
        generate(torch.nn.Linear(2, 2), [3])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([[3], 5], "5 is not a prompt"), ([None], "None is not a prompt"), (7, "prompts is a int"), ([[1.5]], "1.5 in a")],
)
@pytest.mark.usefixtures("unchecked")
def test_prompts_of_another_type_are_named(model, prompts, message):
    with pytest.raises(DllmError, match=message):
        generate(model, prompts)
