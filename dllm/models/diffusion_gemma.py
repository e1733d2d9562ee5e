"""DiffusionGemma, run by transformers: a causal encoder reads the text, a decoder denoises the block behind it.

Encoder and decoder share their weights. The decoder attends to the encoder's keys and values and to the whole block,
and is also told what it said of the block in the step before (self-conditioning). There is no mask: a block begins as
random tokens. Blocks are `canvas_length` tokens wide and follow each other; a finished one is encoded like the prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dllm.canvas import Span
from dllm.errors import DllmError
from dllm.models.foreign import Wrapped
from dllm.spec import ModelSpec

ARCHITECTURE = "DiffusionGemmaForBlockDiffusion"
OPTIONS = ("max_denoising_steps", "t_min", "t_max", "stability_threshold", "confidence_threshold")
"""Options of our sampler that a checkpoint's generation config may have, by the same names."""


class DiffusionGemma(Wrapped):
    """Takes views of `cache.encoder`: of every row the columns to encode first, its note, and the block as the span."""

    module: Any

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "B L"], view: Any, span: Span) -> Float[Tensor, "B W V"]:
        """Logits that predict the tokens of `span`, which see these and what stands before them."""
        for row, (note, fresh) in enumerate(zip(view.notes, view.fresh, strict=True)):
            if fresh:
                note.prefix = self.encode(tokens[row : row + 1, fresh.start : fresh.stop], fresh, note.prefix)
        prefixes = [note.prefix for note in view.notes]
        out = self.module(
            decoder_input_ids=tokens.gather(1, span.columns),
            decoder_position_ids=span.columns,
            decoder_attention_mask=self.hidden(prefixes, span.columns.shape[1]),
            past_key_values=prefixes[0] if len(prefixes) == 1 else beside(prefixes),
            **condition([note.condition for note in view.notes]),
        )
        logits: Tensor = out.logits
        return logits

    def encode(self, tokens: Int[Tensor, "1 Q"], columns: range, prefix: Any) -> Any:
        """The store of a row with these columns behind what it has; None: an empty one."""
        from transformers import DynamicCache

        if prefix is None:
            prefix = DynamicCache(config=self.module.config.get_text_config(decoder=True))
        positions = torch.arange(columns.start, columns.stop, device=tokens.device)[None]
        self.module.model.encoder(input_ids=tokens, position_ids=positions, past_key_values=prefix)
        return prefix

    def hidden(self, prefixes: Sequence[Any], width: int) -> dict[str, Tensor | None]:
        """For every kind of layer, numbers that hide the padding of shorter prefixes from a block of this width.

        Numbers to add, (B, 1, W, K), since not every attention of transformers takes boolean ones.
        """
        kinds: dict[str, Tensor | None] = {}
        layer_types = self.module.config.get_text_config(decoder=True).layer_types
        for kind in set(layer_types):
            kept = torch.tensor([kept_columns(p, layer_types.index(kind)) for p in prefixes], device=self.device)
            most = int(kept.max())
            padding = torch.arange(most + width, device=self.device) < most - kept[:, None]
            hidden = torch.zeros(padding.shape, dtype=self.dtype, device=self.device)
            hidden = hidden.masked_fill(padding, torch.finfo(self.dtype).min)[:, None, None].expand(-1, 1, width, -1)
            kinds[kind] = hidden if padding.any() else None
        return kinds


def kept_columns(prefix: Any, layer: int) -> int:
    """How many columns a layer has kept: all, or the last ones of a sliding window."""
    return int(prefix.layers[layer].keys.shape[-2])


def beside(prefixes: Sequence[Any]) -> Any:
    """One store of several rows, in which shorter prefixes are padded on the left."""
    from transformers import DynamicCache

    joined = DynamicCache()
    for layer in range(len(prefixes[0].layers)):
        most = max(kept_columns(prefix, layer) for prefix in prefixes)
        pad = [(0, 0, most - kept_columns(prefix, layer), 0) for prefix in prefixes]
        stores = [prefix.layers[layer] for prefix in prefixes]
        keys = torch.cat([F.pad(store.keys, by) for store, by in zip(stores, pad, strict=True)])
        values = torch.cat([F.pad(store.values, by) for store, by in zip(stores, pad, strict=True)])
        joined.update(keys, values, layer)
    return joined


def condition(said: Sequence[Float[Tensor, "W V"] | None]) -> dict[str, Tensor]:
    """What the decoder said of each row's block in the step before, as arguments; None in a block's first step."""
    known = [one for one in said if one is not None]
    if not known:
        return {}
    logits = torch.stack([torch.zeros_like(known[0]) if one is None else one for one in said])
    had = torch.tensor([one is not None for one in said], device=logits.device)
    return {"self_conditioning_logits": logits, "self_conditioning_mask": had}


def canvas_spec(module: nn.Module, eos_ids: Sequence[int] | None) -> ModelSpec:
    """What decoding must know, with the sampler of the checkpoint's generation config."""
    config: Any = module.config
    settings: Any = module.generation_config
    text = config.get_text_config(decoder=True)
    first = text.per_layer_config[0]  # the others may differ, which nobody here asks for
    if eos_ids is None:
        end = text.eos_token_id if settings.eos_token_id is None else settings.eos_token_id
        eos_ids = [] if end is None else end if isinstance(end, list) else [end]
    options = {name: value for name in OPTIONS if (value := getattr(settings, name)) is not None}
    if settings.sampler_config is not None:
        options["entropy_bound"] = settings.sampler_config.entropy_bound
    return ModelSpec(
        vocab_size=text.vocab_size,
        n_layers=text.num_hidden_layers,
        n_heads=text.num_attention_heads,
        n_kv_heads=first.num_key_value_heads,
        head_dim=first.head_dim,
        hidden_size=text.hidden_size,
        mlp_size=text.intermediate_size,
        max_length=text.max_position_embeddings,
        mask_id=None,
        eos_ids=tuple(eos_ids),
        attention="canvas",
        block_length=config.canvas_length,
        cacheable=False,
        uniform=True,
        sampler="renoise" + ":" * bool(options) + ",".join(f"{name}={value}" for name, value in options.items()),
    )


def read(folder: Path, device: torch.device, dtype: torch.dtype | None, tokenizer: Any) -> DiffusionGemma:
    """The model in a folder; dtype None: the checkpoint's. Raises DllmError where transformers is too old for it."""
    import transformers

    network = getattr(transformers, ARCHITECTURE, None)
    if network is None:
        raise DllmError(f"transformers {transformers.__version__} has no {ARCHITECTURE}; install 5.23 or a newer one.")
    module = network.from_pretrained(folder, dtype=dtype or "auto", use_safetensors=True, trust_remote_code=False)
    module.requires_grad_(False).to(device)
    return DiffusionGemma(module, canvas_spec(module, None), tokenizer)
