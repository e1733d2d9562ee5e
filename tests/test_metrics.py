"""What is counted, and what is derived from it, for diffusion and for autoregressive models."""

import pytest
import torch

import cases
import dllm
from dllm import generate, generate_causal
from dllm.metrics import Totals, Watch, flops, peak_bytes, weight_bytes

SHAPE = {"gen_length": 10, "block_length": 4}


@pytest.fixture(scope="module")
def causal(tiny):
    return tiny(attention="causal", mask_id=None, qkv_bias=True)


def test_plain_autoregressive_decoding_has_exactly_one_token_per_forward(causal, tiny):
    for model in (causal, tiny(attention="causal", mask_id=None, eos_ids=())):  # with and without an end of text
        made = generate_causal(model, cases.PROMPTS, gen_length=24)
        assert made.tokens_per_forward == 1.0 and made.totals.commit_width == 1.0
        assert torch.equal(made.generated_tokens, made.nfe) and made.prefills.tolist() == [1] * 4
        assert made.lossless == "exact" and made.totals.draft_share == 0
    assert made.generated_tokens.tolist() == [24] * 4  # the limit ended these


def test_the_end_of_text_is_a_generated_token_and_no_answer_token(causal):
    made = generate_causal(causal, cases.PROMPTS, gen_length=60, temperature=1.0, seed=1)
    ended = torch.tensor([38 in c for c in made.completions])
    assert ended.any() and torch.equal(made.generated_tokens - made.answer_tokens, ended.long())


def test_one_definition_counts_both_worlds(model):
    made = generate(model, cases.PROMPTS, "static", "none", **SHAPE)
    assert torch.equal(made.generated_tokens, made.answer_tokens + torch.tensor([38 in c for c in made.completions]))
    t = made.totals
    assert t.tokens_per_forward == made.generated_tokens.sum() / made.nfe.sum() and t.prefills == 0
    assert torch.equal(made.committed, made.nfe) and t.commit_width == 1.0  # one token a step, whatever follows the end
    assert t.positions_per_token == made.rows.sum() / made.generated_tokens.sum() and made.lossless == "exact"


def test_the_commit_width_counts_what_follows_the_end_of_text(model):
    made = generate(model, cases.PROMPTS, "threshold:threshold=0", "none", **SHAPE, eos_early_stop=False)
    assert made.committed.tolist() == [10] * 4 and made.nfe.tolist() == [3] * 4
    assert made.totals.commit_width == 10 / 3


def test_drafts_save_forwards_and_cost_positions(causal):
    plain = generate_causal(causal, cases.PROMPTS, gen_length=24)
    drafted = generate_causal(causal, cases.PROMPTS, draft="ngram:max_n=1,k=3", gen_length=24)
    assert drafted.completions == plain.completions and drafted.lossless == "exact"
    assert drafted.tokens_per_forward >= 1 and drafted.rows.sum() > plain.rows.sum()
    accepted = (drafted.steps - drafted.nfe).sum()
    assert drafted.accepted == accepted / drafted.drafted.sum()
    assert 0 < drafted.totals.draft_share < 1 and drafted.draft_forwards == 0


@pytest.mark.parametrize(("rule", "flag"), [("match", "exact"), ("ratio", "distribution"), ("typical", "no")])
def test_a_rule_says_what_it_promises(causal, rule, flag):
    assert generate_causal(causal, [[3, 1]], draft="ngram", verify=rule, gen_length=3).lossless == flag


@pytest.mark.parametrize(
    ("sampler", "cache", "more", "flag"),
    [
        ("static", "none", {}, "exact"),
        ("freedave", "none", {}, "exact"),
        ("static", "none", {"drafts": 2}, "exact"),
        ("static", "dual", {}, "no"),
        ("static", "none", {"steps": 3}, "no"),
        ("static", "none", {"eotp": 0.9}, "no"),
        ("threshold", "none", {}, "no"),
        ("random", "none", {}, "no"),
        ("freedave:tau=0.9", "none", {}, "no"),
        ("sliding:base=static", "none", {}, "no"),
    ],
    ids=str,
)
def test_what_is_lossless_by_construction_is_told(model, sampler, cache, more, flag):
    assert generate(model, [3, 1], sampler, cache, **SHAPE, **more).lossless == flag


def test_a_draft_model_is_counted_apart(causal, tiny):
    small = tiny(seed=1, attention="causal", mask_id=None, n_layers=1)
    made = generate_causal(causal, cases.PROMPTS, draft=small, k=2, gen_length=12)
    plain = generate_causal(causal, cases.PROMPTS, gen_length=12)
    assert made.draft_forwards > 0 and made.draft_rows > 0
    assert made.draft_flops == flops(small.spec, made.draft_rows, made.draft_rows, 0)
    assert made.completions == plain.completions and plain.draft_flops == 0
    assert made.peak_bytes - made.kv_bytes == weight_bytes(causal) + weight_bytes(small)


# Operations


def counted(run):
    """Operations of the matrix products and attention of a run, by torch's own counter."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Of attention it counts no fused kernel of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        made = run()
    return made, counter.get_total_flops()


def test_operations_are_those_of_the_matrix_products(model):
    made, seen = counted(lambda: generate(model, [[3, 1, 4]], "static", "none", gen_length=4, eos_early_stop=False))
    assert made.flops[0] == flops(model.spec, 4 * 7, 4 * 4, 4 * 7 * 7) == seen
    assert made.totals.flops_per_token == made.flops.sum() / made.generated_tokens.sum()


def test_a_causal_model_attends_to_what_stands_before(causal):
    made = generate_causal(causal, [[3, 1, 4]], gen_length=3)
    n = int(made.nfe[0])
    attended = sum(range(1, 4)) + sum(range(4, 4 + n - 1))
    assert made.flops[0] == flops(causal.spec, 3 + n - 1, n, attended)


def test_nodes_of_a_tree_see_their_ancestors_alone(causal):
    made = generate_causal(causal, [[5, 5, 5, 5]], draft="ngram:max_n=1,k=2", gen_length=2)
    # The prompt, then a root at column 4 without room for a draft behind it.
    assert made.nfe.tolist() == [2] and made.flops[0] == flops(causal.spec, 5, 2, 10 + 5)


def test_guidance_costs_twice(model):
    one, two = (
        generate(model, [3, 1], "static", "none", **SHAPE, eos_early_stop=False, cfg_scale=s) for s in (0.0, 1.0)
    )
    assert two.flops[0] == 2 * one.flops[0] and two.nfe[0] == one.nfe[0]


def test_a_foreign_network_has_no_operations_told(tiny):
    assert flops(tiny(cacheable=False).spec, 5, 5, 25) == 0


def test_active_parameters_leave_out_what_is_no_matrix_of_a_layer(model):
    layers = sum(p.numel() for n, p in model.named_parameters() if n.startswith("layers") and p.ndim == 2)
    assert model.spec.active_parameters == layers


# Times


def test_a_run_tells_when_its_first_token_stood_and_what_came_after():
    watch = Watch(2)
    watch.admit(0)
    watch.see(1.0, [(0, 0)], decoding=False)
    watch.see(1.5, [(0, 3)], decoding=True)
    watch.admit(1)
    watch.see(2.5, [(0, 4), (1, 2)], decoding=False)
    watch.see(4.0, [(0, 9), (1, 1)], decoding=True)
    assert watch.first_seconds == [1.5, 1.0] and watch.decode_seconds == 2.0
    assert watch.decode_tokens(0, 8) == 7 and watch.decode_tokens(0, 3) == 3  # the fourth came as a row joined
    assert watch.decode_tokens(1, 2) == 0 and watch.decode_tokens(1, 5) == 3


def test_decoding_begins_behind_the_forwards_that_met_a_prompt(causal, model):
    made = generate_causal(causal, cases.PROMPTS, gen_length=8)
    assert torch.equal(made.decode_tokens, made.generated_tokens - 1)
    assert 0 < made.decode_seconds < made.seconds and (made.first_seconds > 0).all()
    assert (made.first_seconds < made.seconds).all()
    filled = generate(model, cases.PROMPTS, "threshold:threshold=0", "none", gen_length=4)
    assert filled.decode_tokens.tolist() == [0] * 4 and filled.totals.decode_tokens_per_second == 0


def test_a_token_that_may_be_taken_back_does_not_stand(model):
    run = dllm.stream(model, [3, 1, 4], "wino:threshold=0.3,threshold_back=0.3", "none", **SHAPE)
    shown = []
    for _ in run:
        shown.append(run.accounts.watch.shown[0])
    assert all(n % 4 == 0 for n in shown) and run.accounts.watch.shown[0] >= 4  # whole blocks


def test_waiting_for_a_place_does_not_count(causal):
    made = generate_causal(causal, [[3, 1]] * 6, gen_length=12, batch_size=1, temperature=1.0)
    assert made.first_seconds.sum() < made.seconds


# Sums


def test_sums_add_up_and_the_most_bytes_stay():
    one, two = Totals(answers=1, nfe=3, seconds=1.5, kv_bytes=7), Totals(answers=2, nfe=4, seconds=2.0, kv_bytes=5)
    assert one + two == Totals(answers=3, nfe=7, seconds=3.5, kv_bytes=7)


def test_nothing_derived_divides_by_zero():
    empty = Totals()
    assert all(getattr(empty, name) == 0 for name in dllm.metrics.DERIVED)


def test_memory_without_a_gpu_is_what_is_known(model):
    made = generate(model, cases.PROMPTS, "static", "dual", **SHAPE)
    assert made.peak_bytes == weight_bytes(model) + made.kv_bytes == peak_bytes(model.device, made.peak_bytes)
    assert weight_bytes(model) == model.spec.n_parameters * 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is measured on a GPU alone")
def test_memory_on_a_gpu_is_measured(tiny):
    model = tiny(device="cuda")
    assert generate(model, cases.PROMPTS, "static", "dual", **SHAPE).peak_bytes >= weight_bytes(model)
