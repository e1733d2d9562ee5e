"""The canvas while it is denoised: what the terminal shows, step by step."""

import time
from collections.abc import Iterator
from itertools import groupby
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from dllm.engine import Run
from dllm.speculate.run import CausalRun
from dllm.trace import Step, pieces

MASK, END, FRESH = ("·", "dim"), ("∎", "dim"), "black on green"
REDRAW = 0.04
"""Least seconds between two drawings."""


def printable(text: str) -> str:
    """The text without what a terminal would obey: only lines and tabs are left of the control characters."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


class LiveView:
    """A renderer for rich, to be told of every step of a run: `with LiveView(run, console) as view: view(step)`.

    pace: least seconds that a step stays on the screen. The run's clock stands still meanwhile.
    """

    def __init__(self, run: Run | CausalRun, console: Console, pace: float = 0.0) -> None:
        self.text, requests = pieces(run.model.tokenizer), run.requests
        self.mask_id, self.end_ids = run.mask_id, run.spec.eos_ids
        self.starts = [len(request.prompt) for request in requests]
        self.answers = [list(request.answer) for request in requests]
        self.steps, self.revealed, self.forwards = [0] * len(requests), 0, 0
        self.fresh: set[tuple[int, int]] = set()
        """The request and place of what the last step changed."""
        self.shown = list(range(len(requests)))[: run.settings.batch_size]
        self.pieces: dict[int, str] = {}
        self.live = Live(self, console=console, auto_refresh=False, transient=True)
        self.pace, self.drawn = pace, 0.0

    def __enter__(self) -> "LiveView":
        self.live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.live.stop()

    def __call__(self, step: Step) -> None:
        """Take over what a step changed, draw it, and wait until it has been seen."""
        began = time.perf_counter()
        rows, places = step.changed.nonzero(as_tuple=True)
        columns, tokens = step.span.columns[rows, places].tolist(), step.after[rows, places].tolist()
        self.fresh, self.shown, self.forwards = set(), step.requests, step.index + 1
        for request in step.requests:
            self.steps[request] += 1
        for row, column, token in zip(rows.tolist(), columns, tokens, strict=True):
            request = step.requests[row]
            place = column - self.starts[request]
            was, self.answers[request][place] = self.answers[request][place], token
            if token >= 0:
                self.fresh.add((request, place))
            # A token may be masked again. What fills the canvas after the end of text is no token of the answer.
            blanks = (self.mask_id, *self.end_ids)
            self.revealed += (token >= 0 and token not in blanks) - (was >= 0 and was not in blanks)
        if self.pace or began - self.drawn >= REDRAW:
            self.live.refresh()
            self.drawn = time.perf_counter()
            time.sleep(max(0.0, self.pace - (self.drawn - began)))

    def piece(self, token: int) -> str:
        """A token as text that a terminal can print."""
        if token not in self.pieces:
            self.pieces[token] = printable(self.text(token))
        return self.pieces[token]

    def header(self) -> Text:
        rate = self.revealed / max(1, sum(self.steps))
        figures = (("step", max(self.steps)), ("forwards", self.forwards), ("tokens per forward", f"{rate:.1f}"))
        return Text("  ").join(Text.assemble((f"{name} ", "dim"), (str(value), "bold")) for name, value in figures)

    def canvas(self, request: int) -> Text:
        """The answer as it stands: masks as dots, noise dim, what the last step revealed marked."""

        def look(place: int) -> tuple[str, str]:
            token = self.answers[request][place]
            if token == self.mask_id:
                return MASK
            if token < 0:
                return self.piece(~token), "dim"
            style = FRESH if (request, place) in self.fresh else ""
            return (END[0], style or END[1]) if token in self.end_ids else (self.piece(token), style)

        looks = map(look, range(len(self.answers[request])))
        runs = ((style, "".join(text for text, _ in group)) for style, group in groupby(looks, lambda it: it[1]))
        return Text.assemble(*((text, style) for style, text in runs))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        # Two columns are left free for the ^C that a terminal writes; a line more would spoil the erasing.
        height, width = (options.height or console.height) - 2, options.max_width - 2
        shown = self.shown[: max(1, height // 5)]
        yield self.header()
        for request in shown:
            lines = self.canvas(request).wrap(console, width - 4)
            room = max(1, height // len(shown) - 2)
            # A long answer is shown from its first mask on, with a third of the room for what stands before.
            masked = next((i for i, line in enumerate(lines) if MASK[0] in line.plain), len(lines))
            first = max(0, min(masked - room // 3, len(lines) - room))
            title = f"{request + 1} of {len(self.answers)}" if len(self.answers) > 1 else None
            text = Text("\n").join(lines[first : first + room])
            yield Panel(text, title=title, title_align="left", border_style="dim", width=width)
        if len(shown) < len(self.shown):
            yield Text(f"and {len(self.shown) - len(shown)} more in flight", style="dim")
