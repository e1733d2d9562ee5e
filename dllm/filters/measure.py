"""Accuracy against tokens per forward: a filter beside plain thresholds on the same questions, and the oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

from dllm.errors import DllmError
from dllm.evaluate.finished import Finished, key_of
from dllm.evaluate.runner import chosen
from dllm.evaluate.score import paired_bootstrap
from dllm.evaluate.tasks.base import Question, Task
from dllm.filters.calibrate import wrong
from dllm.filters.collect import Decoding
from dllm.filters.oracle import Oracle
from dllm.fingerprint import fingerprint
from dllm.generation import Request, cut, named, token_ids
from dllm.samplers import Learn2PD, Static, Threshold
from dllm.samplers.base import Sampler
from dllm.samplers.filter import Filter
from dllm.spec import Model

PLAIN = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
LEARNED = (0.9, 0.8, 0.7, 0.6)
"""Thresholds that are measured, of the filter its own besides."""


@dataclass(frozen=True)
class Point:
    """What a sampler made of some questions."""

    sampler: str
    right: tuple[int, ...]
    """0 or 1 for each question; in the oracle's place those of one token a step, whose answers it gives."""
    wrong: tuple[float, ...]
    """The share of each answer's tokens that are not those of one token a step."""
    nfe: int
    answer_tokens: int

    def __add__(self, other: "Point") -> "Point":
        """The same sampler on more questions."""
        sums = {n: getattr(self, n) + getattr(other, n) for n in ("right", "wrong", "nfe", "answer_tokens")}
        return Point(self.sampler, **sums)

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def risk(self) -> float:
        return sum(self.wrong) / len(self.wrong)

    @property
    def tokens_per_forward(self) -> float:
        return self.answer_tokens / self.nfe


Points = dict[str, Point]
"""By the name of the sampler."""


def samplers(made: Filter) -> dict[str, Sampler]:
    """What is compared, one token a step first."""
    found: dict[str, Sampler] = {"static": Static()}
    found |= {f"threshold:threshold={t:g}": Threshold(t) for t in PLAIN}
    own = [] if made.threshold == 1 else [made.threshold]
    return found | {f"learned:threshold={t:g}": Learn2PD(made, t) for t in sorted({*LEARNED, *own}, reverse=True)}


@dataclass(frozen=True)
class Field:
    """Questions of a task, and what has been made of them; a point that is finished is not made again."""

    model: Model
    task: Task
    decoding: Decoding
    finished: Finished
    limit: int | None = None

    def points(self, made: Filter) -> Points:
        """Each sampler of `samplers`, and the oracle. Raises DllmError for a task that is not right or wrong."""
        questions = list(chosen(self.task.questions(), self.limit).values())
        settings = self.decoding.settings
        prompts = [token_ids(self.model, q.prompt, self.task.chat, q.prefix) for q in questions]
        masks = [settings.mask(self.model.spec)] * settings.gen_length
        asked = named(prompts, [masks] * len(prompts), prompts, 1, range(len(prompts)))
        facts = {
            "task": self.task.name,
            "prompts": prompts,
            "weights": fingerprint(self.model),
            **self.decoding.facts(),
        }
        facts |= {"dtype": str(self.model.dtype)}
        found, plain = Points(), list[list[int]]()
        for name, sampler in samplers(made).items():
            weights = [part.tolist() for part in made.net.state_dict().values()] if name.startswith("learned") else []
            kept = self.kept(key_of(facts, name, weights), questions, asked, sampler, plain)
            plain = plain or kept["completions"]
            found[name] = point(name, kept)
        knowing = Oracle.of(asked, plain, self.decoding.block_length, self.model.device)
        kept = self.kept(key_of(facts, "oracle"), questions, asked, knowing, plain)
        return found | {"oracle": point("oracle", kept | {"right": found["static"].right})}

    def kept(
        self,
        key: str,
        questions: Sequence[Question],
        asked: Sequence[Request],
        sampler: Sampler,
        plain: list[list[int]],
    ) -> dict[str, Any]:
        """Counts of a sampler, from the file if they are there; of the first one its answers too."""
        if key not in self.finished.found:
            done = self.decoding.run(self.model, asked, sampler)
            head, texts = self.task.metrics[0], [cut(text, self.task.stop) for text in done.texts or []]
            right = [self.task.score(q, text)[head] for q, text in zip(questions, texts, strict=True)]
            if not all(value in (0, 1) for value in right):
                raise DllmError(
                    f"{head} of {self.task.name} has values between 0 and 1; give a task of right and wrong."
                )
            pairs = zip(done.completions, plain or done.completions, strict=True)
            counts: dict[str, Any] = {"nfe": int(done.nfe.sum()), "answer_tokens": int(done.answer_tokens.sum())}
            counts |= {"right": [int(value) for value in right]}
            counts |= {"wrong": [wrong(a, b, self.model.spec.eos_ids) for a, b in pairs]}
            self.finished.add(key, counts if plain else counts | {"completions": done.completions})
        return dict(self.finished.found[key])


def point(name: str, kept: Mapping[str, Any]) -> Point:
    return Point(name, tuple(kept["right"]), tuple(kept["wrong"]), kept["nfe"], kept["answer_tokens"])


def pooled(tasks: Sequence[Points]) -> Points:
    """The points of several tasks together."""
    return {name: reduce(Point.__add__, (points[name] for points in tasks)) for name in tasks[0]}


def against(point: Point, front: Sequence[Point]) -> tuple[float, tuple[float, float]]:
    """By how much a point's accuracy exceeds that of other points at its tokens per forward, and the 95 % interval.

    Between two of these, ordered by tokens per forward, accuracy is taken to fall straight, question by question; a
    point faster than all is compared with the fastest. The interval is the paired bootstrap's over the questions.
    """
    ordered, x = sorted(front, key=lambda p: p.tokens_per_forward), point.tokens_per_forward
    place = sum(p.tokens_per_forward <= x for p in ordered)
    low, high = ordered[max(0, place - 1)], ordered[min(place, len(ordered) - 1)]
    wide = high.tokens_per_forward - low.tokens_per_forward
    share = (x - low.tokens_per_forward) / wide if wide > 0 and 0 < place < len(ordered) else float(place > 0)
    plain = [(1 - share) * a + share * b for a, b in zip(low.right, high.right, strict=True)]
    return point.accuracy - sum(plain) / len(plain), paired_bootstrap(plain, point.right)


def record(points: Mapping[str, Points]) -> dict[str, Any]:
    """The points of all tasks as JSON has them."""
    return {task: [asdict(p) for p in own.values()] for task, own in points.items()}
