"""A tiny random DiffusionGemma, and transformers' own generation from it with our noise in place of its own."""

from unittest import mock

import torch
import transformers

from dllm.noise import Key, request_id

V, W, EOS = 40, 8, 1
TEXT = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "max_position_embeddings": 128,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "position_embedding_size": 16,
}


def tiny(seed=0, dtype=torch.float64, sharpness=2.0, **options):
    """Random weights wide enough that what is proposed depends on the context; prefixes outgrow the sliding window."""
    config = transformers.DiffusionGemmaConfig(text_config=TEXT, vision_config=VISION, canvas_length=W)
    config._experts_implementation = config.text_config._experts_implementation = "eager"  # grouped_mm has no float64
    module = transformers.DiffusionGemmaForBlockDiffusion(config).to(dtype).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim >= 2 and "vision" not in name:
                weight.copy_(torch.randn(weight.shape, generator=draw) * sharpness * weight.shape[-1] ** -0.5)
    module.generation_config.update(eos_token_id=EOS, pad_token_id=0, **options)
    return module


class Replayed:
    """Its random numbers are ours: keyed by seed, request, column and step."""

    def __init__(self, prompt, seed):
        self.key, self.begin, self.step = Key(seed, torch.tensor([request_id(prompt, 0)])), len(prompt) - W, 0

    @property
    def now(self):
        return self.key.at(torch.tensor([self.step]))

    @property
    def columns(self):
        return torch.arange(self.begin, self.begin + W)[None]

    def canvas(self, step_keyed):
        if not step_keyed:
            self.begin += W
            return self.key.tokens(self.columns, V)
        noise, self.step = self.now.tokens(self.columns, V), self.step + 1
        return noise

    def draw(self, probabilities, num_samples):
        assert num_samples == 1
        return (probabilities.double().log() + self.now.gumbel(self.columns, V)[0]).argmax(-1, keepdim=True)


def generate(module, prompt, seed, n, **options):
    """What transformers generates: the answer's ids, and the number of denoising steps."""
    replayed = Replayed(prompt, seed)
    sampler = transformers.models.diffusion_gemma.generation_diffusion_gemma.EntropyBoundSampler
    begun = module._prepare_denoiser_inputs

    def begin(*args, **kwargs):
        replayed.fresh = True
        return begun(*args, **kwargs)

    def initialize(*_, **__):
        fresh, replayed.fresh = replayed.fresh, False
        return replayed.canvas(step_keyed=not fresh)

    with (
        mock.patch.object(sampler, "initialize_canvas", initialize),
        mock.patch.object(torch, "multinomial", replayed.draw),
        mock.patch.object(torch.compiler, "cudagraph_mark_step_begin"),  # would import torch's compiler for nothing
        mock.patch.object(module, "_prepare_denoiser_inputs", begin),
    ):
        out = module.generate(torch.tensor([prompt]), max_new_tokens=n, **options)
    return out.sequences[0, len(prompt) :].tolist(), replayed.step
