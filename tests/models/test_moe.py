"""A mixture of experts is the loop over tokens that its definition is, and the families with one are their networks."""

import itertools
import json
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import cases
import dllm
import twins
from dllm.cache import DualCache, full_view
from dllm.canvas import Span
from dllm.models import FAMILIES
from dllm.models.moe import Mixture, grouped_kernel, grouped_matmul
from dllm.models.transformer import Transformer
from dllm.spec import Experts

MIXTURES = {
    "softmax": Experts(count=8, used=3, size=20),
    "normalized": Experts(count=8, used=3, size=20, normalized=True, scale=2.5),
    "sigmoid": Experts(count=8, used=3, size=20, scores="sigmoid", normalized=True, bias=True),
    "groups": Experts(count=12, used=4, size=20, scores="sigmoid", bias=True, groups=4, groups_used=2, scale=0.5),
    "a shared one": Experts(count=6, used=2, size=20, shared_size=28),
    "one": Experts(count=1, used=1, size=20),
    "all": Experts(count=4, used=4, size=20, normalized=True),
}


def mixture(experts: Experts, dtype: torch.dtype = torch.float64) -> Mixture:
    made = Mixture(16, experts).requires_grad_(False)
    if experts.bias:
        made.router.bias.normal_(std=0.3)
    return made.to(dtype)


def slow(layer: Mixture, x: Tensor) -> Tensor:
    """One token after the other, one expert after the other, as the definition says."""
    e = layer.experts
    out = torch.zeros_like(x)
    for b, q in itertools.product(*map(range, x.shape[:2])):
        token = x[b, q]
        logits = layer.router.weight @ token
        scores = logits.softmax(-1) if e.scores == "softmax" else 1 / (1 + (-logits).exp())
        wanted = (scores + layer.router.bias if e.bias else scores).tolist()
        width = e.count // e.groups
        groups = [sum(sorted(wanted[g * width : (g + 1) * width])[-2:]) for g in range(e.groups)]
        open_groups = sorted(range(e.groups), key=lambda g: -groups[g])[: e.groups_used]
        candidates = [i for i in range(e.count) if i // width in open_groups]
        chosen = sorted(candidates, key=lambda i: -wanted[i])[: e.used]
        total = sum(scores[i] for i in chosen) if e.normalized else 1
        for i in chosen:
            gate, up = layer.gate_up[i, : e.size] @ token, layer.gate_up[i, e.size :] @ token
            out[b, q] += e.scale * scores[i] / total * (layer.down[i] @ (F.silu(gate) * up))
        if e.shared_size:
            gate, up = (layer.shared_gate_up.weight @ token).chunk(2)
            out[b, q] += layer.shared_down.weight @ (F.silu(gate) * up)
    return out


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_is_its_definition(kind):
    layer = mixture(MIXTURES[kind])
    x = torch.randn(3, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x), slow(layer, x))


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_token_comes_out_the_same_alone_and_in_any_company(kind):
    layer = mixture(MIXTURES[kind])
    x = torch.randn(4, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[2:3, 3:4], layer(x[2:3, 3:4]))
    torch.testing.assert_close(layer(x.flip(0)), layer(x).flip(0))


def test_the_bias_decides_who_is_chosen_and_not_the_weight():
    layer = mixture(replace(MIXTURES["sigmoid"], normalized=False))
    x = torch.randn(50, 16, dtype=torch.float64)
    layer.router.bias.zero_()
    layer.router.bias[5] = 10
    weights, chosen = layer.router(x)
    assert (chosen[:, 0] == 5).all() and (weights <= 1).all()
    torch.testing.assert_close(weights[:, 0], torch.sigmoid(x @ layer.router.weight[5]))


def test_a_tokens_experts_are_of_few_groups():
    layer = mixture(MIXTURES["groups"])
    _, chosen = layer.router(torch.randn(200, 16, dtype=torch.float64))
    groups = [set(row.tolist()) for row in chosen // 3]
    assert max(map(len, groups)) == 2 and set().union(*groups) == {0, 1, 2, 3}


@pytest.mark.parametrize("matmul", [grouped_matmul, grouped_kernel])
@pytest.mark.parametrize("counts", [[5, 0, 3], [0, 0, 8], [8, 0, 0], [1, 1, 1]], ids=str)
def test_grouped_rows_meet_their_owners_matrix(counts, matmul):
    x, weights = torch.randn(sum(counts), 16), torch.randn(3, 24, 16)
    owners = torch.arange(3).repeat_interleave(torch.tensor(counts))
    got = matmul(x, weights, torch.tensor(counts).cumsum(0))
    torch.testing.assert_close(got, torch.einsum("ni,noi->no", x, weights[owners]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel is for GPUs")
@pytest.mark.parametrize("width", [40, 20], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_in_bfloat16_on_a_gpu_it_errs_no_more_than_the_loop_does_on_a_cpu(kind, width):
    layer = mixture(replace(MIXTURES[kind], size=width), torch.bfloat16)
    x = torch.randn(3, 50, 16, dtype=torch.bfloat16)
    loop, exact = layer(x), layer.double()(x.double())
    got = layer.bfloat16().cuda()(x.cuda()).cpu()
    assert (got - exact).abs().mean() <= 1.5 * (loop - exact).abs().mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_router_stays_in_float32(dtype):
    layer = mixture(MIXTURES["sigmoid"], torch.float32)
    before = layer.router.weight.clone()
    layer.to(dtype)
    assert layer.gate_up.dtype == dtype
    assert layer.router.weight.dtype == layer.router.bias.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(layer.router.weight, before.to(layer.router.weight.dtype))
    assert layer(torch.randn(2, 3, 16, dtype=dtype)).dtype == dtype


# Families ---------------------------------------------------------------------------------------------------------

SDAR_30B = {
    "architectures": ["SDARMoeForCausalLM"],
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 32768,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rope_theta": 1000000,
    "vocab_size": 151936,
}
LLADA_MOE_7B = {
    "architectures": ["LLaDAMoEModelLM"],
    "model_type": "llada",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "expert_intermediate_size": 1024,
    "dense_intermediate_size": 8192,
    "shared_expert_intermediate_size": None,
    "moe_layer_freq": [1] * 16,
    "rope_theta": 50000,
    "max_position_embeddings": 8192,
    "qk_layernorm": True,
    "vocab_size": 157184,
}
LLADA2_MINI = {
    "architectures": ["LLaDA2MoeModelLM"],
    "model_type": "llada2_moe",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "score_function": "sigmoid",
    "router_dtype": "fp32",
    "moe_router_enable_expert_bias": True,
    "first_k_dense_replace": 1,
    "partial_rotary_factor": 0.5,
    "rotary_dim": 64,
    "rope_theta": 600000,
    "rms_norm_eps": 1e-06,
    "max_position_embeddings": 32768,
    "use_qkv_bias": False,
    "use_bias": False,
    "tie_word_embeddings": False,
    "pad_token_id": 156892,
    "vocab_size": 157184,
}
QWEN_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
GLM_EXPERTS = {
    "n_routed_experts": 12,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 20,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "use_qk_norm": True,
    "head_dim": 16,
}
# The network of transformers and its sizes; our family, its names, and what its config says that the other does not.
CASES = {
    "sdar": (("Qwen3Moe", QWEN_EXPERTS | {"norm_topk_prob": True}), "SDARMoeForCausalLM", twins.tensors, QWEN_EXPERTS),
    "llada-moe": (
        ("Qwen3Moe", QWEN_EXPERTS | {"rms_norm_eps": 1e-5}),
        "LLaDAMoEModelLM",
        twins.tensors,
        {"num_experts": 8, "expert_intermediate_size": 20, "moe_layer_freq": [1, 1, 1], "norm_topk_prob": None},
    ),
    "llada2": (
        ("Glm4Moe", GLM_EXPERTS),
        "LLaDA2MoeModelLM",
        twins.llada2,
        {"num_experts": 12, "num_shared_experts": 2, "partial_rotary_factor": 0.5, "rope_parameters": None},
    ),
}
BLOCKS = {"sdar": 4, "llada-moe": None, "llada2": 32}


def pair(case: str) -> tuple[torch.nn.Module, Transformer]:
    (name, sizes), architecture, named, config = CASES[case]
    theirs = twins.theirs(name, **sizes)
    return theirs, twins.ours(theirs, architecture, named, mask_token_id=60, rope_theta=10000.0, **config)


def logits(model: Transformer, tokens: Tensor, lengths: list[int]) -> Tensor:
    stop = torch.tensor(lengths)
    return model(tokens, full_view(model.spec, lengths), Span.between(torch.zeros_like(stop), stop, max(lengths)))


def mask(length: int, block_length: int | None) -> Tensor:
    return twins.block_mask(length, block_length or length)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_with_the_same_mask(case):
    theirs, ours = pair(case)
    tokens = torch.randint(3, 60, (2, 41))
    want = theirs(tokens, attention_mask=mask(41, BLOCKS[case])).logits
    torch.testing.assert_close(logits(ours, tokens, [41, 41]), want)
    assert ours.spec.n_parameters == sum(p.numel() for p in ours.parameters())


@pytest.mark.parametrize("block_length", [1, 5])
def test_llada2_in_blocks_of_another_length_equals_transformers(block_length):
    theirs, ours = pair("llada2")
    ours.spec = replace(ours.spec, block_length=block_length)
    tokens = torch.randint(3, 60, (2, 19))
    torch.testing.assert_close(
        logits(ours, tokens, [19, 19]), theirs(tokens, attention_mask=mask(19, block_length)).logits
    )


@pytest.mark.parametrize("case", CASES)
def test_a_row_of_a_ragged_batch_equals_transformers_on_the_row_alone(case):
    theirs, ours = pair(case)
    lengths, tokens = [7, 37, 1], torch.randint(3, 60, (3, 37))
    got = logits(ours, tokens, lengths)
    for row, n in enumerate(lengths):
        want = theirs(tokens[row : row + 1, :n], attention_mask=mask(n, BLOCKS[case])).logits
        torch.testing.assert_close(got[row : row + 1, :n], want)


def test_a_window_over_stored_keys_of_unchanged_tokens_equals_the_full_forward():
    ours = pair("llada-moe")[1].double()
    tokens, lengths = torch.randint(3, 60, (2, 18)), [18, 11]
    canvas = cases.canvas(tokens, [6, 3], lengths, mask_id=60)
    span = Span.between(torch.tensor([8, 3]), torch.tensor([13, 8]), 5)
    want = ours(tokens, full_view(ours.spec, lengths), span)
    state = DualCache().start(ours.spec, canvas, torch.float64)
    for _ in range(2):  # a refresh, then the window alone
        plan = state.plan(span)
        view = state.view(plan, span, torch.arange(2), plan.sum(1).tolist(), lengths)
        torch.testing.assert_close(ours(tokens, view, span), want)


@pytest.mark.parametrize("sampler", ["threshold", "wino"])
def test_an_answer_does_not_depend_on_the_batch(tiny, sampler):
    model = tiny(experts=MIXTURES["groups"], mlp_size=0)
    together = dllm.generate(model, cases.PROMPTS, sampler, **cases.SHAPE)
    alone = [dllm.generate(model, [prompt], sampler, **cases.SHAPE).completions[0] for prompt in cases.PROMPTS]
    assert together.completions == alone


def test_a_mixture_in_blocks_decodes_the_same_from_the_exact_cache():
    ours = pair("llada2")[1].double()
    ours.spec = replace(ours.spec, block_length=4)
    runs = [dllm.generate(ours, cases.PROMPTS, cache=cache, **cases.SHAPE) for cache in ("none", "exact")]
    assert runs[0].completions == runs[1].completions and runs[1].rows.sum() < runs[0].rows.sum()


def published(config: dict) -> tuple[Transformer, dict[str, Tensor]]:
    family = FAMILIES[config["architectures"][0]]
    with torch.device("meta"):
        model = Transformer(family.spec(config))
    tensors = family.checkpoint(model, model.spec)
    assert sum(t.numel() for t in tensors.values()) == model.spec.n_parameters
    return model, tensors


def test_sdar_30b_has_the_published_size():
    model, tensors = published(SDAR_30B)
    assert len(tensors) == 48 * (8 + 1 + 3 * 128) + 3
    assert model.spec.n_parameters == 30_532_122_624 and round(model.spec.n_active_parameters / 1e9, 1) == 3.4
    found = model.spec
    assert (found.attention, found.block_length, found.mask_id, found.logits_shift) == ("block", 4, 151669, 0)
    assert (found.experts.normalized, found.mlp_size, found.mlp_width) == (True, 0, 8 * 768)


def test_llada_moe_has_the_published_tensors_and_is_not_llada():
    model, tensors = published(LLADA_MOE_7B)
    assert len(tensors) == 16 * (8 + 1 + 3 * 64) + 3
    assert tensors["model.layers.15.mlp.experts.63.down_proj.weight"].shape == (2048, 1024)
    assert tensors["model.layers.0.mlp.gate.weight"].shape == (64, 2048)
    assert tensors["model.layers.0.self_attn.q_norm.weight"].shape == (128,)
    found = model.spec
    assert 7.0e9 < found.n_parameters < 7.5e9 and 1.7e9 < found.n_active_parameters < 1.75e9
    assert (found.attention, found.logits_shift, found.mask_id, found.eos_ids) == ("full", 0, 156895, (156892,))
    assert (found.rope_theta, found.norm_eps, found.experts.normalized) == (50000.0, 1e-5, False)
    assert FAMILIES["LLaDAMoEModel"].spec(LLADA_MOE_7B) == found


def test_llada2_mini_has_the_published_tensors():
    model, tensors = published(LLADA2_MINI)
    # 6 of every layer, 3 of the dense MLP; the router's weight and bias, the shared expert and the others.
    assert len(tensors) == 20 * 6 + 3 + 19 * (2 + 3 + 3 * 256) + 3
    assert tensors["model.layers.0.attention.query_key_value.weight"].shape == (3072, 2048)
    assert tensors["model.layers.0.mlp.gate_proj.weight"].shape == (5120, 2048)
    assert tensors["model.layers.1.mlp.gate.expert_bias"].shape == (256,)
    assert tensors["model.layers.19.mlp.experts.255.up_proj.weight"].shape == (512, 2048)
    assert tensors["model.layers.1.mlp.shared_experts.down_proj.weight"].shape == (2048, 512)
    found = model.spec
    assert 16.0e9 < found.n_parameters < 16.5e9 and 1.4e9 < found.n_active_parameters < 1.5e9
    assert (found.attention, found.block_length, found.mask_id, found.eos_ids) == ("block", 32, 156895, (156892,))
    assert (found.rope_dim, found.rope_theta, found.logits_shift) == (64, 600000.0, 0)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (SDAR_30B, {"decoder_sparse_step": 2}, "decoder_sparse_step=2; only 1"),
        (SDAR_30B, {"mlp_only_layers": [0]}, "mlp_only_layers=[0]; only []"),
        (SDAR_30B, {"norm_topk_prob": 1}, "norm_topk_prob=1; it must be true or false"),
        (SDAR_30B, {"num_experts": 0}, "num_experts=0; it must be a whole number of at least 1"),
        (SDAR_30B, {"num_experts_per_tok": 200}, "a token through 200 experts of 1 groups; there are 1 groups of 128"),
        (SDAR_30B, {"num_experts": None}, "has no 'num_experts'"),
        (LLADA_MOE_7B, {"moe_layer_freq": [0, *[1] * 15]}, "moe_layer_freq=0; only 1"),
        (LLADA_MOE_7B, {"moe_layer_freq": 2}, "moe_layer_freq=2; only 1"),
        (LLADA_MOE_7B, {"moe_router_score_function": "sigmoid"}, "moe_router_score_function='sigmoid'"),
        (LLADA_MOE_7B, {"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias=True"),
        (LLADA_MOE_7B, {"shared_expert_intermediate_size": 1024}, "shared_expert_intermediate_size=1024"),
        (LLADA_MOE_7B, {"norm_topk_prob": True}, "norm_topk_prob=True; only False"),
        (LLADA_MOE_7B, {"routed_scaling_factor": 2.5}, "routed_scaling_factor=2.5; only 1"),
        (LLADA_MOE_7B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (LLADA_MOE_7B, {"qk_layernorm": False}, "qk_layernorm=False"),
        (LLADA_MOE_7B, {"router_num_group": 8}, "router_num_group=8"),
        (LLADA_MOE_7B, {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        (LLADA2_MINI, {"score_function": "softmax"}, "score_function='softmax'; only 'sigmoid'"),
        (LLADA2_MINI, {"norm_topk_prob": False}, "norm_topk_prob=False"),
        (LLADA2_MINI, {"use_qk_norm": False}, "use_qk_norm=False"),
        (LLADA2_MINI, {"use_qkv_bias": True}, "use_qkv_bias=True"),
        (LLADA2_MINI, {"use_bias": True}, "use_bias=True"),
        (LLADA2_MINI, {"norm_head": True}, "norm_head=True"),
        (LLADA2_MINI, {"rope_scaling": {"type": "yarn"}}, "rope_scaling={'type': 'yarn'}"),
        (LLADA2_MINI, {"n_group": 7}, "256 experts in 7 groups; a group needs two or more"),
        (LLADA2_MINI, {"n_group": 256}, "256 experts in 256 groups; a group needs two or more"),
        (LLADA2_MINI, {"topk_group": 9}, "8 experts of 9 groups; there are 8 groups of 32"),
        (LLADA2_MINI, {"num_experts_per_tok": 129}, "129 experts of 4 groups; there are 8 groups of 32"),
        (LLADA2_MINI, {"first_k_dense_replace": 20}, "20 layers, the first 20 of them without experts"),
        (
            LLADA2_MINI,
            {"first_k_dense_replace": -1},
            "first_k_dense_replace=-1; it must be a whole number of at least 0",
        ),
        (LLADA2_MINI, {"num_shared_experts": 1.5}, "num_shared_experts=1.5; it must be a whole number of at least 0"),
        (LLADA2_MINI, {"rotary_dim": 32}, "rotates 64 of the 128 numbers of a head (rotary_dim=32)"),
        (LLADA2_MINI, {"partial_rotary_factor": 0.51, "rotary_dim": None}, "rotates 65 of the 128"),
        (LLADA2_MINI, {"partial_rotary_factor": 1.5, "rotary_dim": None}, "rotates 192 of the 128"),
    ],
)
def test_another_network_is_refused_by_the_key(config, changes, message):
    with pytest.raises(dllm.DllmError, match=re.escape(message)):
        FAMILIES[config["architectures"][0]].spec(config | changes)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_in_shards_opens_as_transformers_network(case, tmp_path):
    (name, sizes), architecture, named, config = CASES[case]
    theirs = twins.theirs(name, **sizes)
    twins.save(theirs, tmp_path, architecture, named, mask_token_id=60, rope_theta=10000.0, **config)
    ours = dllm.load(tmp_path, device="cpu", **{"block_length": 4} if BLOCKS[case] else {})
    tokens = torch.randint(3, 60, (2, 14))
    want = theirs(tokens, attention_mask=mask(14, 4 if BLOCKS[case] else None)).logits
    torch.testing.assert_close(logits(ours, tokens, [14, 14]), want)


def test_the_routers_of_a_checkpoint_opened_in_bfloat16_keep_their_values(tmp_path):
    (name, sizes), architecture, named, config = CASES["llada2"]
    theirs = twins.theirs(name, **sizes)
    twins.save(theirs, tmp_path, architecture, named, mask_token_id=60, rope_theta=10000.0, **config)
    router = dllm.load(tmp_path, device="cpu", dtype="bfloat16").layers[2].moe.router
    assert torch.equal(router.bias, theirs.model.layers[2].mlp.gate.e_score_correction_bias)
    assert torch.equal(router.weight, theirs.model.layers[2].mlp.gate.weight)


@pytest.mark.parametrize(
    ("case", "lost", "shape"),
    [
        ("sdar", "model.layers.1.mlp.experts.5.up_proj.weight", [20, 48]),
        ("llada-moe", "model.layers.2.mlp.gate.weight", [8, 48]),
        ("llada2", "model.layers.1.mlp.gate.expert_bias", [12]),
        ("llada2", "model.layers.1.mlp.shared_experts.up_proj.weight", [40, 48]),
        ("llada2", "model.layers.0.mlp.down_proj.weight", [48, 80]),
        ("llada2", "model.layers.2.attention.query_key_value.weight", [128, 48]),
    ],
)
@pytest.mark.parametrize("kind", ["lost", "wider"])
def test_a_near_miss_is_refused_by_the_tensors_name(case, lost, shape, kind, tmp_path):
    (name, sizes), architecture, named, config = CASES[case]
    twins.save(
        twins.theirs(name, **sizes), tmp_path, architecture, named, mask_token_id=60, rope_theta=10000.0, **config
    )
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    shard = tmp_path / places[lost]
    tensors = load_file(shard)
    value = tensors.pop(lost)
    if kind == "lost":
        del places[lost]
        index.write_text(json.dumps({"weight_map": places}))
        message = f"lack the tensor '{lost}' of shape {shape}"
    else:
        tensors[lost] = torch.cat([value, value])
        message = f"'{lost}' has the shape {[2 * shape[0], *shape[1:]]}; config.json asks for {shape}"
    save_file(tensors, shard)
    with pytest.raises(dllm.DllmError, match=re.escape(message)):
        dllm.load(tmp_path, device="cpu")


def test_a_dense_checkpoint_under_the_name_of_a_mixture_is_refused(tmp_path):
    twins.save(twins.theirs("Qwen3"), tmp_path, "SDARMoeForCausalLM", mask_token_id=60, **QWEN_EXPERTS)
    with pytest.raises(
        dllm.DllmError,
        match=re.escape("lack the tensor 'model.layers.0.mlp.experts.0.gate_proj.weight' of shape [20, 48]"),
    ):
        dllm.load(tmp_path, device="cpu")
