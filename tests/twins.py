"""A random network of transformers, ours with its weights, and its checkpoint in the format of another family."""

import functools
import json

import torch
import transformers

SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def theirs(name, **changes):
    """A network of transformers ("Qwen2", "Qwen3", ...) with random weights: no norm all ones, no bias all zeros."""
    torch.manual_seed(0)
    config = getattr(transformers, name + "Config")(**SIZES | changes)
    made = getattr(transformers, name + "ForCausalLM")(config).eval().requires_grad_(False)
    for value in [*made.parameters(), *(b for n, b in made.named_buffers() if n.endswith("correction_bias"))]:
        torch.nn.init.normal_(value, mean=float(value.ndim == 1), std=0.15)
    return made


def tensors(network):
    """Its tensors by name, every expert's by its own, as checkpoints have them (transformers 5 stacks them)."""
    found = {}
    for name, value in network.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            for i, (gate, up) in enumerate(matrix.chunk(2) for matrix in value):
                found |= {f"{stem}{i}.gate_proj.weight": gate, f"{stem}{i}.up_proj.weight": up}
        elif name.endswith("experts.down_proj"):
            found |= {f"{name.removesuffix('down_proj')}{i}.down_proj.weight": down for i, down in enumerate(value)}
        else:
            found[name] = value
    return found


def llada2(network):
    """The tensors of a GLM-4 mixture under the names of LLaDA2, the same network; there q, k and v are one tensor."""
    found = {}
    names = {
        "embed_tokens": "word_embeddings",
        "self_attn.q_proj": "attention.query_key_value",
        "self_attn.o_proj": "attention.dense",
        "self_attn.q_norm": "attention.query_layernorm",
        "self_attn.k_norm": "attention.key_layernorm",
        "e_score_correction_bias": "expert_bias",
    }
    given = tensors(network)
    for name, value in given.items():
        if "q_proj" in name:
            value = torch.cat([given[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        if "k_proj" not in name and "v_proj" not in name:
            found[functools.reduce(lambda text, pair: text.replace(*pair), names.items(), name)] = value
    return found


def ours(network, architecture, named=tensors, **config):
    """The same network of ours, as this family reads the config of transformers with these changes."""
    from dllm.models import FAMILIES
    from dllm.models.transformer import Transformer

    family = FAMILIES[architecture]
    made = Transformer(family.spec(network.config.to_dict() | config)).requires_grad_(False)
    weights = named(network)
    for name, value in made.named_parameters():
        for source, part in family.parts(made.spec, name, value).items():
            part.copy_(weights[source])
    return made.eval()


def block_mask(length, block_length):
    """Numbers to add to attention scores, (1, 1, L, L): 0 within a block and to earlier ones, else the least number."""
    block = torch.arange(length) // block_length
    hidden = block[None, :] > block[:, None]
    return torch.zeros(length, length).masked_fill(hidden, torch.finfo(torch.float32).min)[None, None]


def save(network, folder, architecture, named=tensors, *, shards=3, **config):
    """Write transformers' own tensors under the names of a family, in shards with an index; a None drops a key."""
    from safetensors.torch import save_file

    found = {name: value.contiguous() for name, value in named(network).items()}
    if network.config.tie_word_embeddings:
        del found["lm_head.weight"]
    places = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(found)}
    for shard in set(places.values()):
        save_file({name: value for name, value in found.items() if places[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    published = network.config.to_dict() | {"architectures": [architecture]} | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in published.items() if v is not None}))
