"""From prompts to a filter in one go: collect, fit, calibrate, save. What is finished is not repeated."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dllm.errors import DllmError
from dllm.evaluate.finished import Finished, key_of
from dllm.evaluate.store import dump
from dllm.filters.calibrate import Calibration, calibrate, check_risk, wrong
from dllm.filters.collect import SHARD, Collection, Decoding, asked_of
from dllm.filters.files import save
from dllm.filters.fit import Recipe, fit
from dllm.filters.quality import quality
from dllm.filters.traces import Traces, split
from dllm.fingerprint import fingerprint
from dllm.generation import Prompt
from dllm.samplers import Learn2PD
from dllm.samplers.base import Fitted
from dllm.samplers.filter import FILE, Filter
from dllm.spec import Model

Tell = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and of how much."""


def train(
    model: Model,
    prompts: Sequence[Prompt],
    folder: str | Path,
    *,
    name: str,
    recipe: Recipe | None = None,
    decoding: Decoding | None = None,
    alpha: float = 0.05,
    delta: float = 0.1,
    shard: int = SHARD,
    rank: int = 0,
    world_size: int = 1,
    about: Mapping[str, Any] | None = None,
    tell: Tell = lambda _w, _n, _of: None,
) -> Filter | None:
    """Make FOLDER/filter.safetensors from prompts in random order; on ranks other than 0 only collect.

    name: of the model, for messages. alpha: the risk that the threshold may have, the share of wrong tokens. delta: the
    chance to be wrong about that. about: what else the file tells, as JSON has it; "from": where the prompts are from.
    Raises DllmError for what a user can fix; a filter that is there stays as it is then.
    """
    recipe, decoding, folder = recipe or Recipe(), decoding or Decoding.of(), Path(folder).expanduser()
    check_risk(alpha, delta)
    asked = asked_of(model, prompts, decoding)
    parts = split(len(asked))
    collection = Collection(model, asked, decoding, folder / "traces", shard)
    collection.make(rank, world_size, lambda n, of: tell("collecting", n, of))
    if rank != 0:
        return None
    traces = Traces.read(collection.paths)
    if len(traces.answer) != len(asked):
        raise DllmError(f"{collection.folder} holds {len(traces.answer)} of {len(asked)} prompts; remove its shards.")
    train, valid, unseen = (traces.steps_of(part) for part in parts.values())
    net, how = fit(train, valid, recipe, lambda n, _: tell("fitting", n, recipe.epochs))
    made_for = Fitted("the new filter", name, fingerprint(model), decoding.block_length)
    facts = {
        "recipe": asdict(recipe),
        "collection": collection.facts(),
        "prompts": dict(about or {"from": "given"}),
        "fit": how,
    }
    made = Filter(net, recipe.net, recipe.features, made_for, 1.0, facts)
    facts["quality"] = quality(made, unseen)
    chosen = calibrated(collection, traces, made, parts["calibrate"], alpha, delta, tell)
    facts |= {"calibration": chosen.facts(), "ceiling": ceiling(traces, parts["calibrate"])}
    made = replace(made, threshold=chosen.threshold, facts=json.loads(dump(facts)))
    write(made, folder / FILE)
    return made


def calibrated(
    of: Collection, traces: Traces, made: Filter, which: range, alpha: float, delta: float, tell: Tell
) -> Calibration:
    """Decode the calibration prompts with threshold after threshold. What is decoded stays beside the traces."""
    asked, plain = [of.asked[i] for i in which], traces.answer[which.start : which.stop].tolist()
    eos_ids = of.model.spec.eos_ids
    weights = [part.tolist() for part in made.net.state_dict().values()]

    def losses(threshold: float) -> list[float]:
        tell(f"calibrating at {threshold:g}", 0, len(asked))
        key = key_of(of.facts(), made.kind, made.features, weights, threshold, which.start, which.stop)
        if key not in finished.found:
            done = of.decoding.run(of.model, asked, Learn2PD(made, threshold))
            found = [wrong(a, b, eos_ids) for a, b in zip(done.completions, plain, strict=True)]
            finished.add(key, found)
        return list(finished.found[key])

    with Finished(of.folder, "losses") as finished:
        return calibrate(losses, alpha, delta)


def ceiling(traces: Traces, which: range) -> dict[str, float]:
    """Tokens per forward of one token a step and of the oracle, which no filter exceeds, on these prompts."""
    part = slice(which.start, which.stop)
    tokens = int(traces.answer_tokens[part].sum())
    return {"static": tokens / int(traces.nfe[part].sum()), "oracle": tokens / int(traces.oracle_nfe[part].sum())}


def write(made: Filter, path: Path) -> None:
    """The file of a filter, whole or not at all; the same filter gives the same bytes."""
    for_whom: dict[str, Any] = {name: getattr(made.made_for, name) for name in ("model", "fingerprint", "block_length")}
    about = {"net": made.kind, "features": list(made.features), "made_for": for_whom, "threshold": made.threshold}
    save(path, made.net.state_dict(), filter=about | {"facts": dict(made.facts)})
