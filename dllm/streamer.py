"""The streamers of transformers as observers: TextStreamer, TextIteratorStreamer, TextDiffusionStreamer, ..."""

from typing import Any

import torch

from dllm.canvas import undecided
from dllm.engine import Run
from dllm.errors import DllmError
from dllm.trace import Step


class Streamed:
    """Feeds a streamer of transformers: generate(model, prompt, observers=[Streamed(TextStreamer(tokenizer))]).

    It is given the prompt (`put`), then what is final from the left on, as soon as it is (`put`, several tokens at a
    time), up to and with the end of text, then `end`. One that also has `put_draft` is given before that, after every
    forward, what the model now makes of the text behind what was final: tokens that stand, and proposals. All are
    tensors (1, n) on the CPU. Raises DllmError unless there is one row, as their streamers show only one.
    """

    def __init__(self, streamer: Any) -> None:
        if not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
            raise DllmError(f"{type(streamer).__name__} is no streamer; it needs the methods put(ids) and end().")
        if getattr(streamer, "_takes_logits", False):
            raise DllmError(
                f"{type(streamer).__name__} wants logits, which steps do not have; take one that wants tokens."
            )
        self.streamer = streamer

    def begin(self, run: Run) -> None:
        """A run begins: the streamer gets the prompt."""
        if len(run.schedule.requests) != 1:
            raise DllmError(f"a streamer shows one answer, not {len(run.schedule.requests)}; give one prompt, once.")
        [self.request], self.run, self.final = run.schedule.requests, run, 0
        self.answer = torch.tensor(self.request.answer)
        self.streamer.put(torch.tensor([self.request.prompt]))

    def __call__(self, step: Step) -> None:
        place = step.span.columns[0] - len(self.request.prompt)
        inside = step.span.valid[0] & (place >= 0)
        columns, before, after, proposed = (
            row[inside].cpu() for row in (place, step.before[0], step.after[0], step.proposed[0])
        )
        if hasattr(self.streamer, "put_draft"):
            self.answer[columns] = torch.where(undecided(before, step.mask_id), proposed, before)
            self.put_draft(int(columns.max()) + 1, step.mask_id)
        self.answer[columns] = after
        self.put(step.mask_id)

    def put_draft(self, stop: int, mask_id: int) -> None:
        """What stands or was proposed behind what is final, up to a column, or to one of which nothing is known."""
        draft = self.answer[self.final : stop]
        known = int((~undecided(draft, mask_id)).long().cumprod(0).sum())
        if known:
            self.streamer.put_draft(value=draft[None, :known])

    def put(self, mask_id: int) -> None:
        """What has become final."""
        schedule = self.run.schedule
        stop = int((~undecided(self.answer, mask_id)).long().cumprod(0).sum())
        if self.run.needs.revoking and stop < len(self.answer):
            stop = stop // schedule.block_length * schedule.block_length
        if self.run.settings.eos_early_stop:
            stop = min(stop, self.request.end(self.answer[:stop].tolist(), mask_id, schedule.eos_ids) + 1)
        if stop > self.final:
            self.streamer.put(self.answer[None, self.final : stop])
            self.final = stop

    def end(self) -> None:
        """The run is over."""
        self.streamer.end()
