"""A checkpoint as the bundled ones are, with random weights: a folder to load, that has a tokenizer."""

import json

from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LLaDAModelLM"],
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "mlp_hidden_size": 48,
    "max_sequence_length": 256,
    "mask_token_id": 0,
    "eos_token_id": 1,
}

CAUSAL = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
}


def save(folder, tokenizer=True, config=CONFIG):
    """Write one into `folder`; returns the folder's name, as the command line wants it."""
    from dllm.models import FAMILIES
    from dllm.models.tiny import tiny
    from dllm.zoo.tasks import problems
    from dllm.zoo.tokenizer import save_tokenizer, train_tokenizer

    trained = train_tokenizer(p.question for task in ("math", "lists") for p in problems(task, 20))
    if tokenizer:
        save_tokenizer(trained, folder)
    config = config | {"vocab_size": trained.get_vocab_size()}
    family = FAMILIES[config["architectures"][0]]
    spec = family.spec(config)
    names = ("vocab_size", "n_kv_heads", "hidden_size", "mlp_size", "max_length", "mask_id", "eos_ids", "attention")
    names += ("qkv_bias", "norm_eps", "rope_fp32")
    model = tiny(**{name: getattr(spec, name) for name in names})
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {n: t.float().contiguous() for n, t in family.checkpoint(model, spec).items()}, folder / "model.safetensors"
    )
    return str(folder)
