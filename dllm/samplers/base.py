"""What a sampler gets and what it gives: a prediction of a span in, the span's next tokens out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.canvas import Canvas, Span, highest, undecided
from dllm.errors import DllmError
from dllm.kernels.token_stats import TokenStats
from dllm.noise import Key

Draws = Callable[[], Float[Tensor, "B W V"]]


@dataclass(frozen=True)
class Proposal:
    """The tokens that logits propose for a span, B rows of W columns."""

    logits: Float[Tensor, "B W V"]
    """The model's, guided if guidance is on."""
    draws: Draws
    """Makes `drawn`, which few ask for."""
    tokens: Int[Tensor, "B W"]
    """The most probable ones, or draws at a temperature. Never the mask."""
    confidence: Float[Tensor, "B W"]
    """The proposed token's probability at temperature 1, float32 or wider, at every position, masked or not."""
    stats: TokenStats | None
    """What the one pass over the logits that chose the tokens has found besides, on a GPU."""

    @cached_property
    def drawn(self) -> Float[Tensor, "B W V"]:
        """What the tokens were drawn from: the logits at the temperature, cut to top_p and top_k; else the logits."""
        return self.draws()


class Memory:
    """What a sampler keeps from step to step of every row in flight; a row forgets when it enters a block."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Tensor, Tensor]] = {}
        """By name: the values, and where there are some."""

    def keep_only(self, rows: Int[Tensor, " R"]) -> None:
        """Only these rows go on, in this order."""
        self.kept = {name: (value[rows], known[rows]) for name, (value, known) in self.kept.items()}


@dataclass(frozen=True)
class Recall:
    """The part of a memory that belongs to the rows of a prediction."""

    memory: Memory | None
    """None in a run with drafts, whose steps may turn out never to have been."""
    rows: Int[Tensor, " B"]
    n_rows: int
    """Rows in flight."""
    fresh: Bool[Tensor, " B"]
    """Rows on their first step of a block, which remember nothing."""
    place: Int[Tensor, "B W"]
    """Where the predicted columns stand in the sampler's scope, which a cache may narrow; `width` at padding."""
    width: int
    """Columns of the sampler's scope."""

    @property
    def kept(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Raises DllmError with drafts."""
        if self.memory is None:
            raise DllmError("a sampler that keeps something must say needs().memory, as no step of it can be drafted.")
        return self.memory.kept

    def at(self, like: Tensor) -> tuple[Tensor, ...]:
        """Where something of shape (B,), or (B, W, ...) with an entry for each column, is kept."""
        return (self.rows[:, None], self.place) if like.ndim > 1 else (self.rows,)

    def get(self, name: str, like: Tensor, default: int | float) -> Tensor:
        """What was kept under this name, shaped as `like`, (B,) or (B, W, ...); the default where nothing was."""
        if name not in self.kept:
            return torch.full_like(like, default)
        value, known = (part[self.at(like)] for part in self.kept[name])
        known &= ~(self.fresh[:, None] if like.ndim > 1 else self.fresh)
        return value.masked_fill_(~known.view(*known.shape, *[1] * (value.ndim - known.ndim)), default)

    def set(self, name: str, value: Tensor) -> None:
        """Keep a value of shape (B,), or (B, W, ...) by column, for the rows' next steps."""
        if name not in self.kept:
            places = (self.n_rows, self.width + 1)[: min(value.ndim, 2)]  # the last is padding's
            made = value.new_zeros(*places, *value.shape[2:])
            self.kept[name] = made, torch.zeros(places, dtype=torch.bool, device=value.device)
        kept, known = self.kept[name]
        known[self.rows] &= ~(self.fresh[:, None] if value.ndim > 1 else self.fresh)
        kept[self.at(value)], known[self.at(value)] = value, known.new_ones(())  # True would be sent, and waited for


@dataclass(frozen=True)
class Prediction(Proposal):
    """What the model says about a span, and where its rows stand."""

    span: Span
    mask_id: int
    current: Int[Tensor, "B W"]
    """The tokens that stand there now."""
    open: Bool[Tensor, "B W"]
    """Columns that the generation decides; the others were given."""
    block: Bool[Tensor, "B W"]
    """Columns of the row's present block, in which a sampler reveals. Others are predicted if its scope has them."""
    answer_start: Int[Tensor, " B"]
    """First column of the row's answer."""
    step: Int[Tensor, " B"]
    """Steps that the row has taken, over the whole generation."""
    steps: Int[Tensor, " B"]
    """The steps of its schedule, over the whole generation."""
    block_step: Int[Tensor, " B"]
    """Steps that the row has taken in its present block."""
    block_steps: Int[Tensor, " B"]
    """The block's share of `steps`."""
    quota: Int[Tensor, " B"]
    """How many tokens the schedule reveals now, at least 1."""
    key: Key
    """Noise for samplers that draw."""
    recall: Recall
    propose: Callable[..., Proposal]
    """Proposals from other logits of columns, with their noise."""
    shadow: Float[Tensor, "B W"] | None = None
    """Each current token's probability with its own column hidden, for samplers that need shadows."""

    @cached_property
    def undecided(self) -> Bool[Tensor, "B W"]:
        """True where the span is still to be decided."""
        return undecided(self.current, self.mask_id) & self.open & self.span.valid

    @property
    def broken(self) -> Bool[Tensor, " B"]:
        """Rows for which the model returned NaN."""
        return (self.confidence.isnan() & self.span.valid).any(1)

    @cached_property
    def masked(self) -> Bool[Tensor, "B W"]:
        """True where the present block is still to be decided: what may be revealed now."""
        return self.undecided & self.block

    @cached_property
    def entropy(self) -> Float[Tensor, "B W"]:
        """Of the distribution at temperature 1, in nats."""
        return self.stats.entropy if self.stats else entropy(self.wide_logits)

    @cached_property
    def gap(self) -> Float[Tensor, "B W"]:
        """By how much the highest logit exceeds the second."""
        if self.stats:
            return self.stats.gap
        top = self.wide_logits.topk(2, -1).values
        return top[..., 0] - top[..., 1]

    @cached_property
    def wide_logits(self) -> Float[Tensor, "B W V"]:
        """The logits in float32, or wider where they are."""
        return self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))

    def sure(self, threshold: int | float, strictly: bool = False) -> Bool[Tensor, "B W"]:
        """Where the confidence is at least the threshold, or above it. Nowhere at 1, to which near certainty rounds."""
        passed = self.confidence > threshold if strictly else self.confidence >= threshold
        return passed & (threshold < 1)

    def top(self, k: int | Int[Tensor, " B"], score: Float[Tensor, "B W"] | None = None) -> Bool[Tensor, "B W"]:
        """The k masked positions of each row with the highest score (default: confidence); ties to the lower column."""
        return highest(k, self.confidence if score is None else score, self.masked)

    def reveal(self, where: Bool[Tensor, "B W"]) -> Int[Tensor, "B W"]:
        """The proposed tokens where the block is masked and `where` holds, the current ones elsewhere."""
        return torch.where(where & self.masked, self.tokens, self.current)

    def proposing(self, logits: Float[Tensor, "B W V"]) -> "Prediction":
        """The same prediction with these logits instead of the model's."""
        proposal = self.propose(logits, self.span.columns, self.key)
        return replace(self, **{f.name: getattr(proposal, f.name) for f in fields(Proposal)})

    def seen_from(self, current: Int[Tensor, "B W"], **where: Tensor) -> "Prediction":
        """The same prediction from further along: other tokens stand in the span. where: block and counters then."""
        made = replace(self, current=current, **where)  # type: ignore[arg-type]  # tensors, all of them
        # What is derived from the logits alone need not be derived again.
        kept = ("drawn", "entropy", "gap", "wide_logits")
        vars(made).update({name: vars(self)[name] for name in kept if name in vars(self)})
        return made

    def of_columns(self, place: Int[Tensor, "B W2"], span: Span) -> "Prediction":
        """The part that stands at these places: the prediction of another span."""
        wide = place[..., None].expand(-1, -1, self.logits.shape[-1])
        return replace(
            self,
            span=span,
            logits=self.logits.gather(1, wide),
            draws=lambda: self.drawn.gather(1, wide),
            stats=self.stats and self.stats.at(place),
            tokens=self.tokens.gather(1, place),
            confidence=self.confidence.gather(1, place),
            current=self.current.gather(1, place),
            open=self.open.gather(1, place),
            block=self.block.gather(1, place),
            shadow=None if self.shadow is None else self.shadow.gather(1, place),
        )


@dataclass(frozen=True)
class Fitted:
    """The one model, and the blocks, for which a method's numbers were fitted."""

    method: str
    """What was fitted: where it was read."""
    model: str
    """The model's name then."""
    fingerprint: str
    """Of its weights."""
    block_length: int
    digest: str = ""
    """Of what was fitted: changes when it is fitted again."""


@dataclass(frozen=True)
class Needs:
    """What a sampler asks of the loop besides predictions of the block."""

    revoking: bool = False
    """It may mask again what it revealed. It must then not take more steps than there are masks."""
    whole_answer: bool = False
    """The answer is one block unless a block_length is given."""
    shadows: bool = False
    """Predictions come with `shadow`."""
    decided: bool = False
    """Its rule reads decided columns too, so that no cache may leave them out of the prediction."""
    noise: bool = False
    """It draws, at temperature 0 too."""
    memory: bool = False
    """It keeps something in `recall`, so that its steps cannot be tried out as drafts."""
    drafts: int = 1
    """Drafts of a step, the canvas itself included, where the caller does not give a number."""
    plain: bool = False
    """One token a step, the surest first, unless `steps` says otherwise: what other rules are compared with."""
    renoises: int = 0
    """Steps of a block, at most, that decide nothing but draw its undecided tokens anew, which masks do not allow."""
    fitted: Fitted | None = None
    """It can only decode what it was fitted for. None: any model, any block length."""
    subset: bool = False
    """A draft is accepted once all that it reveals is confirmed, whatever else would be revealed; lossy."""


class Sampler:
    """A rule for what to reveal: frozen settings, called once a step. What it remembers stands in `p.recall`."""

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        """The next tokens of the span. In every row in which something is masked, something must be decided."""
        raise NotImplementedError(f"{type(self).__name__} does not say what to reveal.")

    def needs(self) -> Needs:
        return Needs()

    def for_model(self, name: str) -> "Sampler":
        """The same rule with what was fitted for the model of this name, for rules that need it and name nothing.

        name: of a bundled model, or its folder. Raises DllmError if nothing comes with it.
        """
        return self

    def temperature(self, block_step: Int[Tensor, " B"]) -> Float[Tensor, " B"] | None:
        """At which temperature `drawn` is wanted, for rules with one of their own; None: that of the settings."""
        return None

    def block_length(self, asked: int | None, gen_length: int) -> int:
        """How many columns a block of its has: what is asked for, the whole answer, or 32."""
        return asked or (gen_length if self.needs().whole_answer else 32)

    def check(self, gen_length: int) -> None:
        """Raise DllmError if the rule cannot be applied to answers of this many tokens."""

    def announce(
        self, masked: Bool[Tensor, "B W"], columns: Int[Tensor, "B W"], quota: Int[Tensor, " B"], key: Key
    ) -> Bool[Tensor, "B W"]:
        """Which masked columns of a block the next step reveals, for rules that do not ask the model."""
        raise NotImplementedError(f"{type(self).__name__} decides by what the model predicts.")

    def quotas(self, masked: int, steps: int) -> Sequence[int]:
        """How many tokens a schedule of so many steps reveals in each, at a block of so many masks; none reveals 0."""
        return evenly(masked, steps)

    def scope(self, canvas: Canvas, block: Span) -> Span:
        """The columns to predict, which contain those of the block that may be revealed.

        Only `block` itself is widened where an end of text may be seen behind it (eotp).
        """
        return block


def entropy(logits: Float[Tensor, "B W V"]) -> Float[Tensor, "B W"]:
    """Of the distributions, in nats."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p.clamp(min=-1e30)).sum(-1)  # a probability of 0 counts nothing


def evenly(masked: int, steps: int) -> list[int]:
    """LLaDA's schedule: the first (masked mod steps) steps take one more than the others."""
    steps = min(steps, masked)  # a step of nothing would be a wasted forward
    return [masked // steps + (step < masked % steps) for step in range(steps)]


def check_probability(name: str, value: int | float, low: str, high: str) -> None:
    """Raise DllmError unless 0 <= value <= 1; low and high say what the ends of the range mean."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DllmError(f"{name}={value!r} is not a probability; give a value from 0 ({low}) to 1 ({high}).")


def check_at_least(name: str, value: int | float, least: int | float, meaning: str) -> None:
    """Raise DllmError unless the value is a number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
        raise DllmError(f"{name}={value!r} must be a finite number of at least {least}: {meaning}.")


def check_whole(name: str, value: int, least: int, meaning: str) -> None:
    """Raise DllmError unless the value is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DllmError(f"{name}={value!r} must be a whole number of at least {least}: {meaning}.")
