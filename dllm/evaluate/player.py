"""One page that plays traces: the canvas filling in, forward by forward, two samplers side by side."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from dllm.errors import DllmError

Lines = list[dict[str, Any]]
"""A trace: its header, then a line for every change."""
KEYS = {"request", "forward", "column", "token", "text", "confidence", "seconds"}
"""What the page needs of a change."""
HEADER = {"requests", "settings", "mask_id", "eos_ids"}
"""What it needs of the header."""


def read(path: Path) -> Lines:
    """The lines of a trace. Raises DllmError if the file is no trace with a header, or breaks off."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DllmError(f"{path} is no trace ({error}); dllm generate --trace FILE writes one.") from error
    if not lines or not isinstance(lines[0], dict) or lines[0].get("trace") != 1:
        raise DllmError(f"{path} does not begin with the header of a trace; dllm generate --trace FILE writes one.")
    if missing := HEADER - {*lines[0]}:
        raise DllmError(
            f"the header of the trace {path} has no {', '.join(sorted(missing))}; dllm generate writes them."
        )
    broken = next((n for n, line in enumerate(lines[1:], 2) if not isinstance(line, dict) or not {*line} >= KEYS), None)
    if broken:
        raise DllmError(f"line {broken} of {path} is no change of a trace; it needs {', '.join(sorted(KEYS))}.")
    return lines


def page(traces: Sequence[Lines], request: int = 0) -> str:
    """A page that plays one request of every trace, with all it needs in it."""
    data = json.dumps([film(trace, request) for trace in traces], separators=(",", ":"))
    # In a script "</script>" and "<!--" would end or open something; JSON may write its one dangerous sign otherwise.
    return (
        Path(__file__).with_suffix(".html").read_text(encoding="utf-8").replace("@DATA@", data.replace("<", "\\u003c"))
    )


def film(trace: Lines, request: int) -> dict[str, Any]:
    """A request of a trace as the page wants it; the page says how. Raises DllmError if there is no such request."""
    header, *changes = trace
    if not 0 <= request < len(header["requests"]):
        raise DllmError(f"request={request} is not in the trace; it has 0 to {len(header['requests']) - 1}.")
    asked, mask_id, shown = header["requests"][request], header["mask_id"], header["settings"]
    texts = dict(zip(asked["answer"], asked["answer_text"], strict=True))
    own = [change for change in changes if change["request"] == request]
    texts |= {change["token"]: change["text"] for change in own}
    place = {token: index for index, token in enumerate(texts)} | {mask_id: -1}
    told = {
        name: shown[name] for name in ("model", "gen_length", "block_length", "temperature", "seed") if name in shown
    }
    return {
        "title": method(shown["sampler"]) + (f", cache {method(shown['cache'])}" if shown.get("cache") else ""),
        "told": ", ".join(f"{name} {value}" for name, value in told.items() if value is not None),
        "prompt": asked["prompt_text"],
        "pieces": list(texts.items()),
        "ends": [place[token] for token in header["eos_ids"] if token in place],
        "start": [place[token] for token in asked["canvas"]],
        "end": [place[token] for token in asked["answer"]],
        "nfe": asked["nfe"],
        "seconds": max((change["seconds"] for change in own), default=0.0),
        "steps": [
            step(forward, list(group), len(asked["prompt"]), place)
            for forward, group in groupby(own, lambda change: change["forward"])
        ],
    }


def step(forward: int, changes: Lines, start: int, place: Mapping[int, int]) -> dict[str, Any]:
    """The changes of a forward. `start`: the answer's first column, `place`: where each token's text is found."""
    columns = [change["column"] - start for change in changes]
    return {
        "n": forward,
        "t": round(changes[0]["seconds"], 4),
        "c": [column - last for column, last in zip(columns, [0, *columns], strict=False)],
        "k": [place[change["token"]] for change in changes],
        "p": "".join(f"{min(99, int(100 * change['confidence'])):02d}" for change in changes),
    }


def method(made: Any) -> str:
    """A sampler or cache as the command line has it."""
    if not isinstance(made, dict):
        return str(made).lower() if isinstance(made, bool) else str(made)
    options = ",".join(
        f"{name}={method(value)}" for name, value in made.items() if name != "name" and value is not None
    )
    return f"{made['name']}:{options}" if options else str(made["name"])
