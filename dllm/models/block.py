"""Block-diffusion relatives of Qwen: a column sees its whole block and every block before it, and nothing later.

SDAR and TraDo (arXiv:2510.06303, arXiv:2509.06949) are Qwen3's network, or Qwen3-MoE's, without a shift; Fast-dLLM v2
(arXiv:2509.26328) is Qwen2.5's, and predicts one column on, as the autoregressive model that it was made from.
"""

from dataclasses import dataclass, replace

from dllm.models import causal
from dllm.models.family import Config, Family, checked, flag, ids, refuse, size
from dllm.spec import Experts, ModelSpec


@dataclass(frozen=True)
class Published:
    """What the published checkpoints have, also those whose config does not say so, and how their network differs."""

    block_key: str
    block_length: int
    mask_id: int
    eos_id: int
    logits_shift: int = 0
    qkv_bias: bool = False
    qk_norm: bool = False

    def spec(self, config: Config) -> ModelSpec:
        """Read a config.json of Qwen's keys and, if they are there, the length of blocks and the id of the mask."""
        usual = {self.block_key: self.block_length, "mask_token_id": self.mask_id, "eos_token_id": self.eos_id}
        config = usual | {key: value for key, value in config.items() if value is not None}
        return checked(
            replace(
                causal.spec(config, qkv_bias=self.qkv_bias, qk_norm=self.qk_norm),
                attention="block",
                block_length=size(config, self.block_key),
                mask_id=ids(config, "mask_token_id")[0],
                logits_shift=self.logits_shift,
            )
        )

    def mixture(self, config: Config) -> ModelSpec:
        """The same with Qwen3-MoE's experts in all layers."""
        refuse(config, {"decoder_sparse_step": 1, "mlp_only_layers": []})
        experts = Experts(
            count=size(config, "num_experts"),
            used=size(config, "num_experts_per_tok"),
            size=size(config, "moe_intermediate_size"),
            normalized=flag(config, "norm_topk_prob", False),
        )
        return checked(replace(self.spec(config), mlp_size=0, experts=experts))


SDAR = Published("block_size", block_length=4, mask_id=151669, eos_id=151643, qk_norm=True)
FAST_DLLM_V2 = Published("bd_size", block_length=32, mask_id=151665, eos_id=151645, logits_shift=1, qkv_bias=True)
QWEN = {"turn_end": "<|im_end|>", "tokenizer": "Qwen2TokenizerFast"}
FAMILIES = (
    Family("SDARForCausalLM", SDAR.spec, causal.NAMES, **QWEN),
    Family("SDARMoeForCausalLM", SDAR.mixture, causal.NAMES | causal.EXPERTS, **QWEN),
    Family("Fast_dLLM_QwenForCausalLM", FAST_DLLM_V2.spec, causal.NAMES, **QWEN),
)
