"""What a generation depends on besides model, prompts, sampler and cache."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from dllm.canvas import NOISE
from dllm.errors import DllmError
from dllm.spec import ModelSpec

ALIASES = {
    "max_new_tokens": "gen_length",
    "max_tokens": "gen_length",
    "gen_len": "gen_length",
    "block_size": "block_length",
    "diffusion_steps": "steps",
    "num_denoising_steps": "steps",
}
"""Names that other projects give to fields of Settings."""
SAMPLER_ALIASES = ("alg", "remasking_strategy", "dllm_unmasking_strategy")
"""Names that other projects give to the argument `sampler`."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `generate`, checked."""

    gen_length: int = 256
    """Tokens of every answer, the filling after its end of text included."""
    block_length: int | None = None
    """The answer is decoded in blocks of this many tokens, left to right. None: 32, and the whole answer for samplers
    that were made without blocks; of a block-causal model its own blocks, which a smaller length must divide."""
    steps: int | None = None
    """Steps of samplers with a schedule, over the whole answer, at least one a block; None: one token a step."""
    temperature: float = 0.0
    """0: the most probable token; above: drawn from softmax(logits / temperature) by float64 Gumbel noise."""
    top_p: float | None = None
    """Draw from the most probable tokens that make up this share of the probability only. None: from all."""
    top_k: int | None = None
    """Draw from this many of the most probable tokens only. None: from all."""
    cfg_scale: float = 0.0
    """Classifier-free guidance: unconditional + (cfg_scale + 1)(conditional - unconditional). 0: off."""
    seed: int | None = None
    """Of the noise at a temperature and of random orders; None draws one, which the result tells."""
    mask_id: int | None = None
    """Overrides the mask token of the model."""
    eos_early_stop: bool = True
    """Stop a row when all before its end of text is decided, and fill what follows with the end of text."""
    eotp: float | None = None
    """End a row at the first column where an end of text is predicted with at least this probability: it is revealed at
    once, and what follows is neither computed nor attended to any more. A block-causal model looks at its present block
    alone. None: off."""
    logits_eos_inf: bool = False
    """Never propose the end of text, the first of the model's `eos_ids`; an end of turn may still come (LLaDA)."""
    confidence_eos_eot_inf: bool = False
    """Give a proposed end of text or of turn confidence 0, so that it is revealed last (LLaDA)."""
    stop: str | Sequence[str] = ()
    """Cut the text before the first of these strings."""
    num_samples: int = 1
    """Answers to every prompt."""
    drafts: int | str | None = None
    """Steps that a forward computes at once: those ahead are guessed, and kept where they come true. The same tokens in
    fewer forwards. "auto": as many as pay in measured time. None: as many as the sampler was made for, mostly 1."""
    eager: bool = False
    """Draft the block behind the present one too, once that is drafted to its end."""
    batch_size: int = 16
    """Rows in flight: a waiting prompt takes the place of a finished one."""
    graphs: bool = True
    """On a GPU, record the launches of window steps and replay them together (CUDA graphs). Caches that look at
    attention, shadow rows and mixtures of experts do without. False: launch every kernel by itself."""
    deterministic: bool = False
    """Let no row's tokens depend on the rows beside it, not by a rounding: sums in a fixed order, on a CPU in forwards
    of one row. Slower. What samplers sum over the vocabulary themselves (klass, credit) keeps no order on a GPU."""
    noise_seed: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        for name in ("gen_length", "block_length", "steps", "top_k", "num_samples", "batch_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise DllmError(f"{name}={value!r} must be a whole number of at least 1.")
        whole = isinstance(self.drafts, int) and not isinstance(self.drafts, bool) and self.drafts >= 1
        if self.drafts is not None and self.drafts != "auto" and not whole:
            raise DllmError(
                f'drafts={self.drafts!r} must be a whole number of at least 1 (1: nothing is guessed), or "auto".'
            )
        for name in ("temperature", "cfg_scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise DllmError(f"{name}={value!r} must be 0 (off) or a finite number above it.")
        for name in ("top_p", "eotp"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value <= 1):
                raise DllmError(f"{name}={value!r} must be a probability above 0 and at most 1, or None for off.")
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < 1 << 63):
            raise DllmError(f"seed={self.seed!r} must be a whole number from 0 to 2**63 - 1, or None to draw one.")
        flags = ("eos_early_stop", "eager", "graphs", "deterministic", "logits_eos_inf", "confidence_eos_eot_inf")
        for name in flags:
            if not isinstance(getattr(self, name), bool):
                raise DllmError(f"{name}={getattr(self, name)!r} must be True or False.")
        if self.mask_id is not None and (isinstance(self.mask_id, bool) or not isinstance(self.mask_id, int)):
            raise DllmError(f"mask_id={self.mask_id!r} must be a token id, a whole number.")
        if self.eotp is not None and self.confidence_eos_eot_inf:
            raise DllmError("eotp needs a sure end of text, which confidence_eos_eot_inf never gives; leave out one.")
        strings = [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(strings, Sequence) or not all(isinstance(s, str) for s in strings):
            raise DllmError(f"stop={self.stop!r} must be a string or a list of strings.")
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(
            self, "noise_seed", random.SystemRandom().getrandbits(31) if self.seed is None else self.seed
        )

    def blank(self, spec: ModelSpec) -> int:
        """What an answer's undecided columns are before they are begun: the mask, or `NOISE` where there is none."""
        return self.mask(spec) if self.mask_id is not None or not spec.uniform else NOISE

    def mask(self, spec: ModelSpec) -> int:
        """The id of the mask token. Raises DllmError if there is none, or if it is not in the vocabulary."""
        if spec.uniform:
            raise DllmError(
                "the model denoises random tokens and knows no mask; leave out mask_id, and what needs one."
            )
        mask_id = spec.mask_id if self.mask_id is None else self.mask_id
        if mask_id is None:
            raise DllmError("the model has no mask token; give mask_id=.")
        if not 0 <= mask_id < spec.vocab_size:
            raise DllmError(f"mask_id={mask_id} is outside the vocabulary of {spec.vocab_size} tokens.")
        return mask_id


NAMES = [f.name for f in fields(Settings) if f.init]
