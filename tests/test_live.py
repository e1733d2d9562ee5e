import io
import re
import time

import pytest
from rich.console import Console

import dllm
from cases import PROMPTS
from dllm.live import FRESH, LiveView, printable


def drawn(view, width=80, height=24):
    """What the view looks like now."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(view)
    return console.file.getvalue()


@pytest.fixture
def run(model):
    return dllm.stream(model, PROMPTS, "threshold:threshold=0.6", gen_length=20, block_length=5, batch_size=3)


@pytest.fixture
def quiet():
    return Console(file=io.StringIO(), width=80, force_terminal=True)


def test_every_step_is_drawn_as_the_canvas_stands(run, quiet):
    answers = [["·"] * 20 for _ in PROMPTS]
    with LiveView(run, quiet) as view:
        assert drawn(view).count("·") == 60, "the three rows in flight"
        for step in run:
            view(step)
            for row, place in step.changed.nonzero().tolist():
                request = step.requests[row]
                token = int(step.after[row, place])
                column = int(step.span.columns[row, place]) - len(PROMPTS[request])
                answers[request][column] = "∎" if token == 38 else f"{token} "
            assert [view.canvas(i).plain for i in range(len(PROMPTS))] == ["".join(a) for a in answers]
    done = run.result()
    for answer, wanted in zip(answers, done.completions, strict=True):
        ids = [38 if a == "∎" else int(a) for a in answer if a != "·"]
        assert ids == wanted[: len(ids)]
    header = view.header().plain
    assert f"forwards {done.forwards} " in header and f"step {int(done.nfe.max())} " in header


def test_what_a_step_revealed_is_marked(run, quiet):
    with LiveView(run, quiet) as view:
        step = next(iter(run))
        view(step)
        marked = [s for r in step.requests for s in view.canvas(r).spans if s.style == FRESH]
        assert sum(s.end - s.start for s in marked) >= int(step.changed.sum())


def test_a_long_answer_is_shown_where_it_is_being_decided(model, quiet):
    run = dllm.stream(model, [1, 2], "static", gen_length=120, block_length=5, eos_early_stop=False)
    with LiveView(run, quiet) as view:
        for step in run:
            view(step)
            picture = drawn(view, width=30, height=10)
            assert picture.count("\n") <= 10
            assert "·" in picture or step.index == 119
            assert max(map(len, picture.splitlines())) <= 30


def test_rows_for_which_there_is_no_room_are_counted(model, quiet):
    run = dllm.stream(model, PROMPTS, gen_length=8)
    view = LiveView(run, quiet)
    assert "and 3 more in flight" in drawn(view, height=9)
    assert "1 of 4" in drawn(view) and "more in flight" not in drawn(view)


def test_nothing_that_a_model_writes_is_obeyed_by_the_terminal():
    assert printable("a\x1b[2J\tb\nc\x07\r") == "a\N{REPLACEMENT CHARACTER}[2J\tb\nc" + "\N{REPLACEMENT CHARACTER}" * 2


def test_text_is_not_markup(run, quiet):
    view = LiveView(run, quiet)
    view.pieces[5] = "[bold]x[/nothing]"
    view.answers[0][0] = 5
    assert "[bold]x[/nothing]" in drawn(view)


def test_the_clock_of_the_run_stands_still_while_a_step_is_drawn_and_waits(run, quiet):
    began, at = run.accounts.began, []
    with LiveView(run, quiet, pace=0.02) as view:
        for step in run:
            at.append(step.seconds)
            view(step)
    took = time.perf_counter() - began
    assert 0 < at[-1] <= run.result().seconds <= took - 0.02 * view.forwards and at == sorted(at)


def test_the_view_leaves_nothing_behind_but_its_erasing(run, quiet):
    with LiveView(run, quiet) as view:
        for step in run:
            view(step)
    written = quiet.file.getvalue()
    assert written.endswith("\x1b[2K") and "\x1b[?25h" in written  # erased, and the cursor is back
    assert len(re.findall("forwards", written)) > 1
