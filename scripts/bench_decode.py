"""Decoding speed against a plain Fast-dLLM-style loop on the same weights.

    python scripts/bench_decode.py                      a trained model, on the CPU, the steps that its answers take
    python scripts/bench_decode.py --shape llada-8b     random weights of a published shape, on a GPU if there is one

The first compares the loops on real questions: both take the same steps, so that the ratio is one of cost, not of luck.
The second, `bench_shapes`, holds the engine against the floors of the device. Every figure is a median over interleaved
repetitions, with the smallest and largest; the last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_shapes
import torch
from bench_common import environment, interleaved, spread
from plain_loop import Plain
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, random_model

import dllm
from dllm.models.transformer import Transformer
from dllm.zoo import tasks

CPU = torch.device("cpu")


CACHES = {
    "none": ("static", "none"),
    "dual": ("static", "dual"),
    "vicinity": ("static", "vicinity"),
    "dkv-decode": ("static", "dkv-decode"),
    "dkv-greedy": ("random", "dkv-greedy"),
    "elastic": ("sliding:base=static", "elastic"),
}
"""A sampler for each cache, all of which take the same number of steps."""


def caches(model: Transformer, batch_size: int, steps: int, gen_length: int, repeat: int) -> dict[str, Any]:
    """How often faster each cache is than none, and how often fewer columns it computes, on prompts of 90 tokens."""
    prompts = [[(7 * row + 13 * column) % 1000 + 2 for column in range(90)] for row in range(batch_size)]
    rows: dict[str, int] = {}

    def timed(name: str, sampler: str, cache: str) -> Callable[[], float]:
        def run() -> float:
            made = dllm.generate(
                model,
                prompts,
                sampler,
                cache,
                gen_length=gen_length,
                steps=steps,
                batch_size=batch_size,
                seed=0,
                eos_early_stop=False,
            )
            rows[name] = int(made.rows.sum())
            return made.seconds

        return run

    made = interleaved({name: timed(name, *pair) for name, pair in CACHES.items()}, repeat)
    seconds = {name: spread(values) for name, values in made.items()}
    return {
        name: {
            "seconds": [round(x, 3) for x in figures],
            "times_faster": round(seconds["none"][1] / figures[1], 2),
            "times_fewer_columns": round(rows["none"] / rows[name], 2),
        }
        for name, figures in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llada")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--gen_length", type=int, default=128)
    parser.add_argument("--block_length", type=int, default=32)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--caches", type=int, metavar="STEPS", help="time the caches alone, in so many steps of 16 rows"
    )
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of a trained model")
    parser.add_argument("--device", help="of a shape; by default a GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="of a shape: few tokens, to try the code out")
    parser.add_argument("--groups", help="of a shape: only these groups of runs, as one,many")
    parser.add_argument("--out", type=Path, metavar="FILE", help="of a shape: also write the JSON here")
    parser.add_argument("--commit", help="what is measured, where the folder is no checkout")
    options = parser.parse_args()
    if options.shape:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        only = options.groups.split(",") if options.groups else []
        bench_shapes.main(options.shape, device, options.quick, only, options.out, options.commit)
        return
    torch.set_num_threads(options.threads)
    random = random_model(SHAPES["5m"], CPU, torch.float32)
    if options.caches is not None:
        print(json.dumps(caches(random, 16, options.caches, options.gen_length, options.repeat)))
        return
    model = dllm.load(options.model, device="cpu", dtype="float32")
    questions = [p.question for p in tasks.problems("math", options.prompts)]
    lengths = {"gen_length": options.gen_length, "block_length": options.block_length}
    sampler = f"threshold:threshold={options.threshold}"
    ids = [
        model.tokenizer(
            model.tokenizer.apply_chat_template(
                [{"role": "user", "content": q}], add_generation_prompt=True, tokenize=False
            ),
            add_special_tokens=False,
        )["input_ids"]
        for q in questions
    ]
    answers: dict[str, list[list[int]]] = {}
    forwards: dict[str, int] = {}

    def ours(name: str, cache: str, batch_size: int) -> Callable[[], float]:
        def run() -> float:
            made = dllm.generate(model, ids, sampler, cache, batch_size=batch_size, eos_early_stop=False, **lengths)
            answers[name], forwards[name] = made.completions, int(made.nfe.sum())
            return float(options.prompts * options.gen_length / made.seconds)

        return run

    def plain(name: str, cache: str) -> Callable[[], float]:
        def run() -> float:
            began = time.perf_counter()
            made = [Plain(model, cache).generate(row, threshold=options.threshold, **lengths) for row in ids]
            answers[name], forwards[name] = [m[0] for m in made], sum(m[1] for m in made)
            return float(options.prompts * options.gen_length / (time.perf_counter() - began))

        return run

    runs = {f"plain {cache}": plain(f"plain {cache}", cache) for cache in ("none", "prefix", "dual")}
    runs |= {f"dllm {cache}": ours(f"dllm {cache}", cache, 1) for cache in ("none", "prefix", "dual")}
    runs["dllm dual, batch 16"] = ours("dllm dual, batch 16", "dual", 16)
    speed = {name: spread(values) for name, values in interleaved(runs, options.repeat).items()}

    def overhead() -> float:
        made = dllm.generate(random, [list(range(2, 92))], "static", "dual", steps=128, eos_early_stop=False, **lengths)
        return 1 - made.forward_seconds / made.seconds

    share = spread(interleaved({"overhead": overhead}, options.repeat)["overhead"])
    table = Table(title="canvas tokens per second, prompts one at a time unless said")
    for column in ("loop", "median", "min", "max", "forwards", "same answers as plain"):
        table.add_column(column)
    for name, (low, middle, high) in speed.items():
        twin = "plain " + name.split()[1].strip(",")
        same = sum(a == b for a, b in zip(answers[name], answers[twin], strict=True))
        table.add_row(
            name, f"{middle:.0f}", f"{low:.0f}", f"{high:.0f}", str(forwards[name]), f"{same}/{options.prompts}"
        )
    Console(width=120).print(table)
    median = {name: figures[1] for name, figures in speed.items()}
    result = {
        "tokens_per_second": {name: [round(x, 1) for x in figures] for name, figures in speed.items()},
        "dual_over_plain": {
            c: round(median["dllm dual"] / median[f"plain {c}"], 2) for c in ("none", "prefix", "dual")
        },
        "batch_16_over_1": round(median["dllm dual, batch 16"] / median["dllm dual"], 2),
        "engine_overhead_5M": [round(x, 3) for x in share],
        "conditions": {
            **{name: getattr(options, name) for name in ("model", "prompts", "threshold", "repeat", *lengths)},
            "dtype": "float32",
            "task": "math",
            **environment(CPU, options.commit),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
