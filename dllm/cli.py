"""The command line: dllm generate, dllm compare, dllm doctor."""

import contextlib
import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import dllm
from dllm.api import choose_cache, choose_sampler
from dllm.arguments import constraints_of, listed, read, settings_of
from dllm.doctor import conditions, examine, lines
from dllm.errors import DllmError
from dllm.generation import Generation, Prompt
from dllm.options import convert


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. An error that the user can fix is one line on stderr, and code 2."""
    commands = {"generate": generate, "compare": compare, "doctor": doctor}
    try:
        options = read(list(sys.argv[1:] if argv is None else argv))
        code = commands[options.command](options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # At its exit Python flushes stdout once more, where nothing could catch the error.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (DllmError, OSError, torch.OutOfMemoryError) as error:
        print("dllm: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2


def generate(options: Namespace) -> int:
    """A terminal shows the canvas being denoised; a pipe gets the answers, and stderr the figures."""
    prompts, settings, pace = prompts_of(options), settings_of(options), convert("pace", options.pace, float)
    short = {name: getattr(options, name) for name in dllm.samplers.owners()}
    sampler, cache = choose_sampler(options.sampler, options.remasking, short), choose_cache(options.cache, {})
    trace = dllm.Trace()
    with replacing(options.trace) as trace_file:
        run = dllm.stream(
            model := load(options),
            prompts,
            sampler,
            cache,
            chat=not options.no_chat,
            constraints=constraints_of(options.constraints),
            observers=[trace] if trace_file else [],
            **settings,
        )
        live = sys.stdout.isatty() and not options.json
        paused = watch(run, pace if live else None)
        done = run.result()
        done = replace(done, seconds=done.seconds - paused)
        if trace_file:
            trace.to_json(trace_file)
    if options.json:
        used = conditions(model, options.model) | settings | {"seed": done.seed, "chat": not options.no_chat}
        used["sampler"] = parts(run.sampler, dllm.samplers.SAMPLERS)
        used["constraints"] = options.constraints
        used["cache"] = parts(cache, dllm.cache.CACHES)
        print(json.dumps(record(done) | {"settings": used}))
    else:
        drawn = settings["temperature"] > 0 or run.sampler.needs().noise
        show(done, live, f", seed {done.seed}" if drawn else "")
    return 0


def watch(run: dllm.Run, pace: float | None) -> float:
    """Take all steps, with a pace live on the screen; returns the seconds that this added to the run."""
    if pace is None:
        for _ in run:
            pass
        return 0.0
    from dllm.live import LiveView

    with LiveView(run, Console(), pace) as view:
        for step in run:
            view(step)
    return view.paused


def show(done: Generation, live: bool, seed: str) -> None:
    """Print the answers and a line of figures."""
    from dllm.live import printable

    answers = done.texts or [" ".join(map(str, ids)) for ids in done.completions]
    for i, answer in enumerate(answers, 1):
        if live and len(answers) > 1:
            Console().print(f"[dim]{i} of {len(answers)}[/dim]", highlight=False)
        print(printable(answer) if live else answer, flush=True)
    Console(stderr=not live, highlight=False).print(
        f"{done.forwards} forwards, {int(done.answer_tokens.sum())} answer tokens, "
        f"{done.tokens_per_forward:.2f} tokens per forward, {done.tokens_per_second:.0f} tokens/s, "
        f"{done.seconds:.2f} s{seed}",
        style="dim",
        soft_wrap=True,
    )


def record(done: Generation) -> dict[str, Any]:
    """A generation as JSON has it: lists with an entry for each answer, and figures for all together."""
    lists = {"text": done.texts, "tokens": done.completions, "nfe": done.nfe.tolist()}
    lists |= {name: getattr(done, name).tolist() for name in ("answer_tokens", "rows", "columns", "refreshes")}
    figures = ("forwards", "tokens_per_forward", "tokens_per_second", "seconds", "reused", "kv_bytes")
    return lists | {name: getattr(done, name) for name in figures}


def compare(options: Namespace) -> int:
    """The table goes to stdout, progress to stderr, and files are written when all is done."""
    from dllm import compare as grid

    settings, n = settings_of(options), convert("n", options.n, int)
    samplers = [*dllm.samplers.SAMPLERS] if options.samplers == "all" else listed(options.samplers)
    caches = [*dllm.cache.CACHES] if options.caches == "all" else listed(options.caches)
    tasks, pairs = listed(options.task), grid.pairs(samplers, caches, lambda told: print(told, file=sys.stderr))
    asked = grid.questions(tasks, n, settings["seed"] or 0)
    with replacing(options.csv) as csv_file, replacing(options.png) as png_file:
        model = load(options)
        cells = grid.run(model, asked, pairs, Console(stderr=True), **settings)
        used = conditions(model, options.model) | {"tasks": tasks, "n": len(asked)} | settings
        if csv_file:
            grid.to_csv(cells, used, csv_file)
        if png_file:
            grid.to_png(cells, used, png_file)
    if options.json:
        print(json.dumps({"rows": [asdict(cell) for cell in cells], "conditions": used}))
    else:
        piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
        out = Console(highlight=False, width=110 if piped else None)
        out.print(grid.table(cells))
        out.print(grid.note(used), style="dim", soft_wrap=piped)
    return 0


def doctor(options: Namespace) -> int:
    """Exit code 1 says that the model does not fit."""
    prompt_length = convert("prompt_length", options.prompt_length, int)
    report = examine(options.model, options.device, options.dtype, prompt_length, **settings_of(options))
    print(json.dumps(report) if options.json else "\n".join(lines(report)))
    return 0 if report.get("model", {}).get("fits", True) else 1


def load(options: Namespace) -> Any:
    """The model, with a bar in a terminal while it is read."""
    return dllm.load(options.model, device=options.device, dtype=options.dtype, progress=sys.stderr.isatty())


def parts(method: Any, registry: Mapping[str, type]) -> dict[str, Any]:
    """A sampler or cache as its name and options; a sampler that it applies likewise."""
    options = {field.name: printable(getattr(method, field.name)) for field in fields(method)}
    inner = {name: parts(value, registry) for name, value in options.items() if type(value) in registry.values()}
    return {"name": next(name for name, made in registry.items() if type(method) is made), **options, **inner}


def printable(value: Any) -> Any:
    """A value as JSON has it: an infinite number as text."""
    if isinstance(value, tuple):
        return [printable(part) for part in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def prompts_of(options: Namespace) -> list[Prompt]:
    """Texts, then token ids. Raises DllmError if there is none."""
    found: list[Prompt] = [from_stdin() if text == "-" else text for text in options.prompt]
    for text in options.prompt_ids:
        words = re.split(r"[\s,]+", text.strip(" \n,[]"))
        if not all(re.fullmatch("[0-9]+", word) for word in words):
            raise DllmError(f"--prompt_ids {text!r} is no list of token ids; give whole numbers with spaces between.")
        found.append([int(word) for word in words])
    if not found:
        raise DllmError("no prompt was given; give a text, - for standard input, or --prompt_ids.")
    return found


def from_stdin() -> str:
    """All of standard input, without the newline that ends it."""
    try:
        text = sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise DllmError(f"standard input is not text ({error}).") from error
    if not text.strip():
        raise DllmError("standard input is empty; it should hold a prompt.")
    return text


@contextlib.contextmanager
def replacing(path: Path | None) -> Iterator[Path | None]:
    """A file beside `path` to write to, which replaces it if all goes well and is removed otherwise.

    It is tried at once, so that a place that cannot be written to is found before there is something to write.
    """
    if path is None or (path.exists() and not path.is_file() and not path.is_dir()):  # a pipe or a device
        yield path
        return
    target = path.resolve()  # what a link points to
    try:
        if target.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(0, "it is read-only")
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise DllmError(f"{path} cannot be written ({error.strerror}); give another file.") from error
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
