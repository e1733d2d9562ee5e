"""The command line: dllm generate, play, compare, eval, report, tune, train-filter, doctor."""

import contextlib
import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import dllm
from dllm.api import choose_cache, choose_sampler
from dllm.arguments import AGAIN, constraints_of, listed, read, settings_of
from dllm.causal import CAUSAL_NAMES
from dllm.doctor import conditions, config_of, examine, lines
from dllm.errors import DllmError
from dllm.generation import Generation, Prompt
from dllm.loading import split_name
from dllm.metrics import DERIVED
from dllm.options import convert, parts
from dllm.settings import Settings
from dllm.speculate.run import CausalRun
from dllm.verify import against_plain

TASK_OPTIONS = ("protocol", "data", "shots", "allow_code_execution")
"""What `dllm eval` hands to the task that it asks."""
RANKS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
"""The environment that torchrun and accelerate launch set, and its values without them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. An error that the user can fix is one line on stderr, and code 2."""
    commands = {"generate": generate, "play": play, "compare": compare, "eval": evaluate}
    commands |= {"report": report, "tune": tune, "train-filter": train_filter, "doctor": doctor}
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["lm_eval"]:
            return harness(words[1:])
        options = read(words)
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
    sampler = choose_sampler(options.sampler, options.remasking or "low_confidence", dict(short))
    cache = choose_cache(options.cache, {})
    named = any(value is not None for value in (options.sampler, options.remasking, *short.values()))
    dllm.speculate.rule(rule := next((name for name in options.verify if name != AGAIN), "match"))
    trace, chat = dllm.Trace(), not options.no_chat
    with replacing(options.trace) as trace_file:
        model, observers = load(options), [trace] if trace_file else []
        run: dllm.Run | CausalRun
        if model.spec.attention == "causal":
            refuse(options, model, "sampler", "cache", "remasking", "constraints", *short)
            settings = {n: v for n, v in settings.items() if n in CAUSAL_NAMES or v != getattr(Settings, n)}
            run = dllm.stream_causal(
                model, prompts, options.draft, verify=rule, chat=chat, observers=observers, **settings
            )
        else:
            refuse(options, model, "draft", *["verify"] * (options.verify not in ([], [AGAIN])))
            given = constraints_of(options.constraints)
            run = dllm.stream(
                model,
                prompts,
                sampler if named else None,
                cache,
                chat=chat,
                constraints=given,
                observers=observers,
                **settings,
            )
        live = sys.stdout.isatty() and not options.json
        watch(run, pace if live else None)
        done = run.result()
        checked = against_plain(run) if AGAIN in options.verify else None
        used = conditions(model, options.model) | settings | {"seed": done.seed, "chat": chat} | told(run)
        used["constraints"] = options.constraints
        if trace_file:
            trace.to_json(trace_file, run, **used)
    if options.json:
        verified = checked.record() if checked else {}
        print(json.dumps(record(done) | verified | {"settings": used}))
    else:
        drawn = settings["temperature"] > 0 or (isinstance(run, dllm.Run) and run.sampler.needs().noise)
        show(done, live, f", seed {done.seed}" if drawn else "")
        if checked:
            Console(stderr=not live, highlight=False).print(str(checked), style="dim", soft_wrap=True)
    return 0


def refuse(options: Namespace, model: Any, *names: str) -> None:
    """Raise DllmError for options that are for the other kind of model."""
    for name in names:
        if (value := getattr(options, name)) not in (None, []):
            kind = "decodes token by token" if model.spec.attention == "causal" else "fills masks"
            text = " --verify ".join(value) if isinstance(value, list) else value
            raise DllmError(f"--{name} {text} does not apply to {options.model}, which {kind}; leave it out.")


def told(run: dllm.Run | CausalRun) -> dict[str, Any]:
    """The method of a run as JSON has it."""
    if isinstance(run, CausalRun):
        drafter = run.drafter and parts(run.drafter, dllm.speculate.DRAFTERS)
        return {"draft": drafter, "verify": parts(run.rule, dllm.speculate.RULES)}
    return {"sampler": parts(run.sampler, dllm.samplers.SAMPLERS), "cache": parts(run.cache, dllm.cache.CACHES)}


def watch(run: dllm.Run | CausalRun, pace: float | None) -> None:
    """Take all steps, with a pace live on the screen."""
    if pace is None:
        for _ in run:
            pass
        return
    from dllm.live import LiveView

    with LiveView(run, Console(), pace) as view:
        for step in run:
            view(step)


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
    lists = {"text": done.texts, "tokens": done.completions}
    names = (
        "nfe",
        "prefills",
        "answer_tokens",
        "generated_tokens",
        "committed",
        "rows",
        "columns",
        "refreshes",
        "steps",
    )
    lists |= {name: getattr(done, name).tolist() for name in (*names, "drafted", "first_seconds")}
    figures = ("forwards", "seconds", "draft_forwards", "draft_seconds", "kv_bytes", "peak_bytes", "lossless")
    derived = {name: getattr(done.totals, name) for name in DERIVED}
    return lists | {name: getattr(done, name) for name in figures} | derived


def play(options: Namespace) -> int:
    """Write the page and tell where it is."""
    from dllm.evaluate import player

    traces, request = [player.read(path) for path in options.traces], convert("request", options.request, int)
    with replacing(options.html) as file:
        assert file is not None  # as the option has a default
        file.write_text(player.page(traces, request), encoding="utf-8")
    print(options.html)
    return 0


def compare(options: Namespace) -> int:
    """The table goes to stdout, progress to stderr, and files are written when all is done."""
    from dllm import compare as grid

    settings, n = settings_of(options), convert("n", options.n, int)
    samplers = [*dllm.samplers.SAMPLERS] if options.samplers == "all" else listed(options.samplers)
    tasks, pairs = listed(options.task), dict[str, list[grid.Pair]]()
    for kind, usual in grid.CACHES.items():
        caches = [*dllm.cache.CACHES] if options.caches == "all" else listed(options.caches or usual)
        pairs[kind] = grid.pairs(samplers, caches)
    drafted, names = grid.drafted(listed(options.drafters)), listed(options.models or options.model)
    dllm.speculate.rule(options.verify)
    asked, cells = grid.questions(tasks, n, settings["seed"] or 0), list[grid.Cell]()
    with replacing(options.csv) as csv_file, replacing(options.png) as png_file:
        for name in names:
            model = load(options, name)
            kind = model.spec.attention
            chosen = drafted if kind == "causal" else pairs.get(kind, pairs["full"])
            chosen, reasons = grid.legal(model, chosen, verify=options.verify, **settings)
            for reason in reasons:
                print(reason, file=sys.stderr)
            cells += grid.run(model, asked, chosen, Console(stderr=True), name, verify=options.verify, **settings)
        cells = [cell for own in grid.by_task(cells).values() for cell in own]
        for line in grid.unequal(cells):
            print(line, file=sys.stderr)
        used = (
            conditions(model, ", ".join(names)) | {"tasks": tasks, "n": len(asked), "verify": options.verify} | settings
        )
        if csv_file:
            grid.to_csv(cells, used, csv_file)
        if png_file:
            grid.to_png(cells, used, png_file)
    if options.json:
        rows = [cell.record() for cell in cells]
        print(json.dumps({"rows": rows, "aup": grid.areas(cells), "conditions": used}))
    else:
        piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
        out = Console(highlight=False, width=120 if piped else None)
        out.print(grid.table(cells))
        told = ", ".join(f"{task} {area:.0f}" for task, area in grid.areas(cells).items())
        out.print(f"AUP of the front (accuracy in % under tokens per forward): {told}", soft_wrap=piped)
        out.print(grid.note(used), style="dim", soft_wrap=piped)
    return 0


def evaluate(options: Namespace) -> int:
    """Under torchrun and accelerate launch each process answers its share; the first writes and prints the whole."""
    from dllm.evaluate import answers, runner, tasks

    rank, world_size = ranks(options)
    limit = None if options.limit is None else convert("limit", options.limit, int)
    task = tasks.make(options.task, **{name: getattr(options, name) for name in TASK_OPTIONS})
    decoding = decoding_of(options)
    if options.ray is not None:
        method = answers.method_of(config_of(options.model)[0], task, split_name(options.model, {})[0], **decoding)
        return evaluate_on_ray(options, task, method, limit, world_size)
    console = Console(stderr=True) if rank == 0 else None
    path = runner.evaluate(
        load(options),
        task,
        options.output,
        name=options.model,
        limit=limit,
        rank=rank,
        world_size=world_size,
        console=console,
        **decoding,
    )
    return written(path, options.json)


def ranks(options: Namespace) -> tuple[int, int]:
    """This process's rank, and how many there are; each takes a GPU of its own."""
    rank, world_size, local_rank = (int(os.environ.get(n, d)) for n, d in RANKS.items())
    if world_size > 1 and options.device in (None, "cuda") and torch.cuda.is_available():
        options.device = f"cuda:{local_rank}"
    return rank, world_size


def evaluate_on_ray(options: Namespace, task: Any, method: Any, limit: int | None, world_size: int) -> int:
    """The same with the answers of Ray actors."""
    from dllm.evaluate import cluster, runner

    n = convert("ray", options.ray, int)
    if world_size > 1:
        raise DllmError(f"--ray {n} starts its own processes; leave it out under torchrun and accelerate launch.")
    with cluster.workers(n, options.model, options.device, options.dtype) as pool:
        where, console = pool.environment, Console(stderr=True)
        path = runner.collect(task, method, where, pool, options.output, limit, workers=n, console=console)
    return written(path, options.json)


def written(path: Path | None, as_json: bool) -> int:
    """Tell of an evaluation that is done, if this process is the one that wrote it."""
    if path:
        tell([str(path)], as_json)
        print(f"results: {path}, samples beside it", file=sys.stderr)
    return 0


def decoding_of(options: Namespace) -> dict[str, Any]:
    """What was given of sampler, cache and settings, for a task to put over its own."""
    names = [name for name in options.settings if getattr(options, name) not in (None, [])]
    options.settings = names
    short = {name: value for name in dllm.samplers.owners() if (value := getattr(options, name)) is not None}
    chosen = {name: getattr(options, name) for name in ("sampler", "cache", "remasking", "draft", "verify")}
    given = {name: value for name, value in chosen.items() if value is not None}
    return given | settings_of(options) | short


def report(options: Namespace) -> int:
    tell(options.runs, options.json, options.png)
    return 0


def tell(paths: Sequence[str], as_json: bool, png: Path | None = None) -> None:
    """Print finished evaluations beside each other, the first of each task as its baseline."""
    from dllm.evaluate import report

    runs = [report.read(path) for path in paths]
    firsts = {run.task: run for run in reversed(runs)}
    rows = [report.row(run, firsts[run.task]) for run in runs]
    with replacing(png) as png_file:
        if png_file:
            report.to_png(rows, runs, png_file)
    if as_json:
        print(json.dumps({"rows": rows, "aup": report.areas(rows)}))
        return
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    out = Console(highlight=False, width=140 if piped else None)
    for own in report.by_task(rows).values():
        out.print(report.table(own))
    told = ", ".join(f"{task} {area:.0f}" for task, area in report.areas(rows).items())
    out.print(f"AUP of the front (accuracy in % under tokens per forward): {told}", soft_wrap=piped)
    for line in report.note(runs):
        out.print(line, style="dim", soft_wrap=piped)


def tune(options: Namespace) -> int:
    """What is searched goes to stderr first; the table, what was proved and the file's name come last."""
    from dllm.evaluate import tasks, tuned

    given = {name: getattr(options, name) for name in TASK_OPTIONS}
    task, names = tasks.make(options.task, **given), [n for n in options.settings if getattr(options, n) is not None]
    options.settings = names
    decoding, n = settings_of(options), None if options.n is None else convert("n", options.n, int)
    lose, delta = convert("lose", options.lose, float), convert("delta", options.delta, float)
    model = load(options)
    samplers = listed(options.samplers) if options.samplers else [*tuned.SAMPLERS]
    caches = listed(options.caches) if options.caches else [*tuned.usual_caches(model.spec)]
    console = Console(stderr=True, highlight=False)
    console.print(f"searching {' '.join(samplers)}\nwith the caches {' '.join(caches)}", style="dim", soft_wrap=True)
    path = Path(options.output)
    with replacing(path) as made, console.status("", refresh_per_second=4) as status:
        assert made is not None
        found = tuned.tune(
            model,
            task,
            path.with_suffix(".cells"),
            name=options.model,
            lose=lose,
            delta=delta,
            n=n,
            samplers=samplers,
            caches=caches,
            tell=status.update,
            **decoding,
        )
        made.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(found))
        return 0
    out = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
    for title in ("search", "held_out"):
        if found[title]:
            out.print(tuned.table(title.replace("_", " "), found[title]))
    out.print(found["guarantee"])
    chosen = found["settings"]
    out.print(f"{chosen['sampler']}, {chosen['cache']}: written to {path}, for --settings of generate and eval")
    return 0


def train_filter(options: Namespace) -> int:
    """Progress goes to stderr; the guarantee, the ceiling and the files' names to stdout."""
    from dllm.filters import command

    rank, world_size = ranks(options)
    return command.run(options, load(options), rank, world_size)


def harness(words: Sequence[str]) -> int:
    """lm-evaluation-harness's own command line, which reads its own options."""
    try:
        from dllm.evaluate import lm_eval
    except ModuleNotFoundError as error:
        raise DllmError(f"this needs the package {error.name}; pip install 'dllm-decode[eval]'.") from error
    return lm_eval.main(words)


def doctor(options: Namespace) -> int:
    """Exit code 1 says that the model does not fit."""
    prompt_length = convert("prompt_length", options.prompt_length, int)
    report = examine(options.model, options.device, options.dtype, prompt_length, **settings_of(options))
    print(json.dumps(report) if options.json else "\n".join(lines(report)))
    return 0 if report.get("model", {}).get("fits", True) else 1


def load(options: Namespace, name: str | None = None) -> Any:
    """The model, or another one by its name, with a bar in a terminal while it is read."""
    return dllm.load(name or options.model, device=options.device, dtype=options.dtype, progress=sys.stderr.isatty())


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
