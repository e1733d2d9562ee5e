"""The options of the command line, made from the fields of the settings and samplers that they set."""

import argparse
import ast
import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import dllm
from dllm import settings_file
from dllm.errors import DllmError, unknown
from dllm.options import convert
from dllm.settings import ALIASES, NAMES, SAMPLER_ALIASES, Settings
from dllm.speculate import DRAFTERS, RULES

ALSO = {
    **ALIASES,
    **dict.fromkeys(SAMPLER_ALIASES, "sampler"),
    "confidence_threshold": "threshold",
    "model_path": "model",
    "tasks": "task",
    "output_path": "output",
    "confirm_run_unsafe_code": "allow_code_execution",
}
"""Names that other projects give to our options."""


AGAIN = "again"
"""What --verify without an accept rule says: decode again, and tell what differs."""


class Parser(argparse.ArgumentParser):
    """Raises DllmError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise DllmError(f"{message}; see {self.prog} --help.")


def read(argv: list[str]) -> argparse.Namespace:
    """The command and its options. Raises DllmError for what is not known, SystemExit after --help and --version."""
    parser, commands = build()
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        raise unknown("command", argv[0], commands)
    end = argv.index("--") if "--" in argv else len(argv)
    words = [*map(spelled, argv[:end]), *argv[end:]]
    if argv[:1] == ["generate"]:
        words = [word + alone(words[i + 1 : i + 2]) * (word == "--verify") for i, word in enumerate(words)]
    options, rest = parser.parse_known_args(words)
    command = options.__dict__.get("command")
    if command and getattr(options, "settings_file", None):
        usual = settings_file.read(options.settings_file, ["sampler", "cache", *options.settings])
        commands[command].set_defaults(**usual)
        options, rest = parser.parse_known_args(words)
        settings_file.settle(options, usual)
    for item in rest:
        if re.match("-[^0-9 ]", item) and item not in argv[end:]:
            raise unknown("option", item.partition("=")[0], known(commands[command] if command else parser))
    if command is None:
        parser.print_help()
        parser.exit()
    if command == "generate":  # argparse leaves over the prompts that stand after an option
        options.prompt += [item for item in rest if item != "--"]
    elif rest:
        raise DllmError(f"unexpected argument {rest[0]!r}; see dllm {command} --help.")
    return options


def known(parser: argparse.ArgumentParser) -> list[str]:
    """The long options that a parser shows."""
    return re.findall(r"--\w+", parser.format_usage())


def spelled(item: str) -> str:
    """An option as it is registered: underscores for hyphens, our name for another project's."""
    if not re.fullmatch(r"--[\w-]+(=.*)?", item, re.DOTALL):
        return item
    name, equals, value = item[2:].partition("=")
    name = name.replace("-", "_")
    return f"--{ALSO.get(name, name)}{equals}{value}"


def alone(behind: Sequence[str]) -> str:
    """What lets --verify stand alone, unless an accept rule stands behind it: what else may is a prompt.

    Raises DllmError for a word that is nearly a rule.
    """
    name = behind[0].partition(":")[0] if behind else ""
    if name not in RULES and difflib.get_close_matches(name, RULES, cutoff=0.8):
        raise unknown("accept rule", name, RULES)
    return "" if name in RULES else f"={AGAIN}"


def docs(settings: type) -> dict[str, str]:
    """The string that stands under each field of a dataclass."""
    made = ast.parse(inspect.getsource(settings)).body[0]
    assert isinstance(made, ast.ClassDef)
    found = {}
    for field, under in zip(made.body, made.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(under, ast.Expr) and isinstance(under.value, ast.Constant):
            found[ast.unparse(field.target)] = str(under.value.value)
    return found


def add_settings(parser: argparse.ArgumentParser, names: Sequence[str], **defaults: Any) -> None:
    """One option for each of these fields of Settings."""
    hints, told = get_type_hints(Settings), docs(Settings)
    usual = {f.name: f.default for f in fields(Settings) if f.default is not MISSING} | defaults
    parser.set_defaults(settings=names)
    for name in names:
        text = (told[name][0].lower() + told[name][1:]).removesuffix(".").replace("%", "%%")
        if hints[name] is bool:
            text += f"; --no_{name} turns it off" if usual[name] else ""
            parser.add_argument(f"--{name}", action="store_true", default=usual[name], help=text)
            parser.add_argument(f"--no_{name}", dest=name, action="store_false", help=argparse.SUPPRESS)
        elif name == "stop":
            parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help=f"{text}; may be repeated")
        else:
            kinds = (hints[name], *get_args(hints[name]))
            kind = "FLOAT" if float in kinds else "INT|NAME" if str in kinds else "INT"
            text += "" if usual[name] is None else f" [{usual[name]}]"
            parser.add_argument(f"--{name}", default=usual[name], metavar=kind, help=text)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of Settings that the command has, checked."""
    hints = get_type_hints(Settings)
    given = {name: getattr(options, name) for name in options.settings}
    found = {name: convert(name, v, hints[name]) if isinstance(v, str) else v for name, v in given.items()}
    Settings(**found)
    return found


def constraints_of(text: str | None) -> dict[int, str]:
    """The given words in Prophet's "200:The|201:answer": each is text with a space before it, from that column on."""
    found: dict[int, str] = {}
    for item in text.split("|") if text else []:
        column, colon, words = item.partition(":")
        if not (colon and column.strip().isdigit() and words) or int(column) in found:
            raise DllmError(f"{item!r} in --constraints is not COLUMN:TEXT, each column once, as '200:The|201:answer'.")
        found[int(column)] = " " + words
    return found


def listed(names: str) -> list[str]:
    """The names in "a,b:x=1,y=2,c": a comma before option=value belongs to the name on its left."""
    found = [name.strip() for name in re.split(r",(?!\s*\w+=)", names)]
    if not all(found):
        raise DllmError(f"{names!r} has an empty name in it.")
    return list(dict.fromkeys(found))


# fmt: off  # a row per option
def build() -> tuple[Parser, Mapping[str, argparse.ArgumentParser]]:
    """The parser, and those of its commands."""
    from dllm.evaluate import tuned
    from dllm.evaluate.tasks import TASKS as QUESTIONS
    from dllm.evaluate.tasks.parallelbench import PARALLELBENCH
    from dllm.filters.fit import Recipe
    from dllm.samplers.features import FEATURES
    from dllm.samplers.filter import NETS
    from dllm.zoo.tasks import TASKS

    parser = Parser(prog="dllm", description=dllm.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"dllm {dllm.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", required=False)
    method, samplers, caches = (
        "NAME[:OPTION=VALUE,...]",
        ", ".join(dllm.samplers.SAMPLERS),
        ", ".join(dllm.cache.CACHES),
    )

    def command(name: str, model: str | None, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        made.set_defaults(command=name)
        made.add_argument(
            "--model",
            default=model,
            help="bundled name, folder or hub id, :block_length=INT behind it for blocks" + f" [{model}]" * bool(model),
        )
        made.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default a GPU if there is one")
        made.add_argument(
            "--dtype", help="float32, bfloat16, float16, float64; by default float32 on a CPU, else the checkpoint's"
        )
        made.add_argument("--json", action="store_true", help="print one JSON object")
        return made

    def add_method(add: Callable[..., Any]) -> None:
        add("--sampler", metavar=method, help=f"{samplers} [threshold]")
        for name, sampler in dllm.samplers.owners().items():
            add(f"--{name}", metavar="VALUE", help=f"short for --sampler {sampler}:{name}=VALUE")
        add("--cache", metavar=method, help=f"{caches} [dual; exact for block-causal models]")
        add("--draft", metavar=method, help=f"what drafts for a causal model: {', '.join(DRAFTERS)} [nothing]")
        add(
            "--settings",
            dest="settings_file",
            metavar="FILE",
            help="take from a file, as dllm tune writes it, what is not given",
        )
        add(
            "--remasking",
            choices=("low_confidence", "random"),
            help="order of the sampler static",
        )

    def add_task(add: Callable[..., Any]) -> None:
        add("--task", default="gsm8k", metavar="NAME", help=f"{', '.join(QUESTIONS)} [gsm8k]")
        add("--protocol", metavar="NAME", help="how the task is asked, by the name of a published way")
        add("--data", metavar="FILE", help="the task's rows (.jsonl, .jsonl.gz, .json, .parquet) instead of the hub's")
        add("--shots", metavar="FILE", help="where the worked examples of the prompts come from, likewise")
        add("--allow_code_execution", action="store_true", help="let the task run code that the model wrote")

    add = command(
        "generate", "tiny-llada", "answer prompts; in a terminal, show the canvas being denoised"
    ).add_argument
    add("prompt", nargs="*", metavar="PROMPT", help="a user's turn; - reads one from standard input")
    add("--prompt_ids", action="append", default=[], metavar='"1 2 3"', help="a prompt as token ids; may be repeated")
    add_method(add)
    add("--constraints", metavar='"200:The|201:answer"', help="words that stand in the answer from these columns on")
    add("--no_chat", action="store_true", help="take prompts as raw text, without the chat template")
    add(
        "--verify",
        action="append",
        default=[],
        metavar="RULE",
        help="alone: decode again one token a step without cache and drafts, and tell what differs; with "
        f"{', '.join(RULES)}: how a causal model accepts drafts [match]. Both may be given",
    )
    add("--trace", type=Path, metavar="FILE", help="write every changed token as a line of JSON, for dllm play")
    add(
        "--pace",
        default="0.05",
        metavar="SECONDS",
        help="least time of a step on the screen; no figure counts it [0.05]",
    )
    add_settings(commands.choices["generate"], NAMES)

    text = "make a page that plays traces side by side, in any browser"
    play = commands.add_parser("play", help=text, description=f"{text.capitalize()}.", allow_abbrev=False)
    play.set_defaults(command="play")
    add = play.add_argument
    add("traces", nargs="+", type=Path, metavar="FILE", help="what dllm generate --trace wrote, one file or more")
    add("--html", type=Path, default=Path("player.html"), metavar="FILE", help="the page to write [player.html]")
    add("--request", default="0", metavar="INT", help="which prompt of each trace, from 0 [0]")

    add = command(
        "compare",
        "tiny-llada",
        "run samplers, caches and drafters on the bundled tasks and ParallelBench's; tell right answers and costs",
    ).add_argument
    add(
        "--task",
        default="math",
        metavar="NAMES",
        help=f"with commas between: {', '.join([*TASKS, *PARALLELBENCH])} [math]",
    )
    add("--models", metavar="NAMES", help="several models, with commas between, on the same problems")
    add("--n", default="100", metavar="INT", help="problems of each task [100]")
    add(
        "--samplers",
        default="static,threshold,factor",
        metavar="NAMES",
        help=f"with commas between, options as for generate, or all: {samplers} [%(default)s]",
    )
    add(
        "--caches",
        metavar="NAMES",
        help=f"likewise: {caches} [none,prefix,dual; of block-causal models none,exact]",
    )
    add(
        "--drafters",
        default="ngram,recycling,suffix",
        metavar="NAMES",
        help=f"likewise, for causal models, beside none: {', '.join(DRAFTERS)} [%(default)s]",
    )
    add("--verify", default="match", metavar="RULE", help=f"how these accept drafts: {', '.join(RULES)} [match]")
    add("--csv", type=Path, metavar="FILE", help="write the table and more figures")
    add("--png", type=Path, metavar="FILE", help="plot right answers against tokens per forward and second")
    add_settings(
        commands.choices["compare"], [n for n in NAMES if n not in ("stop", "num_samples")], gen_length=64, seed=0
    )

    add = command(
        "eval", "tiny-llada", "measure a model on a task; a run that was killed goes on if it is started again"
    ).add_argument
    add_task(add)
    add("--limit", metavar="INT", help="ask a fixed random subset of this many questions only")
    add("--ray", metavar="N", help="share the questions over N Ray actors, here or on the cluster at RAY_ADDRESS")
    add(
        "--output",
        default="runs/eval",
        metavar="FOLDER",
        help="for results_*.json and samples_*.jsonl; one that all ranks share [%(default)s]",
    )
    add_method(add)
    add("--verify", metavar="RULE", help=f"how a causal model accepts drafts: {', '.join(RULES)} [match]")
    # The protocol of the task sets what is not given here.
    add_settings(commands.choices["eval"], NAMES, **dict.fromkeys(NAMES))

    add = command(
        "tune", "tiny-llada", "find the fastest sampler and cache that lose at most so many points on a task"
    ).add_argument
    add_task(add)
    add("--lose", default="1.0", metavar="POINTS", help="of accuracy, at most, against one token a step [1.0]")
    add("--delta", default="0.1", metavar="SHARE", help="the chance to be wrong about that [0.1]")
    add("--n", metavar="INT", help="ask this many questions, a third of them for the search; by default all")
    add("--samplers", metavar="NAMES", help=f"with commas between: {samplers} [{','.join(tuned.SAMPLERS)}]")
    add("--caches", metavar="NAMES", help=f"likewise: {caches} [none,dual; of block-causal models none,exact,subblock]")
    add(
        "--output",
        default="runs/tune/settings.json",
        metavar="FILE",
        help="for --settings of generate and eval; what is finished is kept beside it [%(default)s]",
    )
    tunable = [name for name in NAMES if name not in ("steps", "stop", "num_samples")]
    add_settings(commands.choices["tune"], tunable, **dict.fromkeys(tunable))

    add = command(
        "train-filter", "tiny-llada", "collect traces, fit a filter for the sampler learned, calibrate it, report"
    ).add_argument
    add("--task", metavar="NAMES", help=f"prompts: training problems of {', '.join(TASKS)} [lists,math,code]")
    add("--prompts", type=Path, metavar="FILE", help="or a .txt file, one a line, or rows (.jsonl, .json, .parquet)")
    add("--dataset", metavar="NAME[:CONFIG[:SPLIT]]", help="or rows of a data set on the hub")
    add("--n", metavar="INT", help="prompts, drawn at random; by default all of a file or data set, 420 of each task")
    add("--net", default=Recipe.net, metavar=method, help=f"{', '.join(NETS)} [%(default)s: the paper's]")
    add(
        "--features",
        default=",".join(Recipe.features),
        metavar="NAMES",
        help=f"with commas between: {', '.join(FEATURES)} [%(default)s: the paper's]",
    )
    add("--alpha", default="0.05", metavar="SHARE", help="of wrongly revealed tokens that is allowed [0.05]")
    add("--delta", default="0.1", metavar="SHARE", help="the chance to be wrong about that [0.1]")
    add("--cache", default="none", metavar=method, help=f"of all that is decoded: {caches} [none]")
    add(
        "--output",
        default="runs/filter",
        metavar="FOLDER",
        help="for the filter, its report and its traces [%(default)s]",
    )
    add("--measure", metavar="NAMES", help="report accuracy against tokens per forward on these tasks")
    add("--limit", metavar="INT", help="ask a fixed random subset of this many questions of each of them only")
    add_settings(
        commands.choices["train-filter"],
        ["gen_length", "block_length", "batch_size", "seed"],
        gen_length=64,
        block_length=32,
        seed=0,
    )

    add = command("report", None, "finished evaluations beside each other, compared with the first").add_argument
    add("runs", nargs="+", metavar="RUN", help="a folder with one results_*.json, or the file")
    add("--png", type=Path, metavar="FILE", help="plot right answers against tokens per forward and second")

    add = command(
        "doctor", None, "tell what is installed and what runs on it; with --model, whether it fits"
    ).add_argument
    add("--prompt_length", default="256", metavar="INT", help="tokens of every prompt [256]")
    add_settings(commands.choices["doctor"], ["gen_length", "block_length", "batch_size"])
    commands.add_parser("lm_eval", add_help=False, help="lm-evaluation-harness's own command line, with our models")
    for made in commands.choices.values():
        also = ", ".join(f"--{also} for --{name}" for also, name in ALSO.items() if f"--{name}" in known(made))
        made.epilog = "Hyphens may stand for underscores." + f" Also understood: {also}." * bool(also)
    return parser, commands.choices
