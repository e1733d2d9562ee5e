"""Autoregressive decoding against transformers' `generate`: the same checkpoint, prompts and tokens in one run.

Greedy decoding at batch 1 and 8; prompt lookup and, with --draft, a small model, at batch 1 as transformers has them.
No end of text stops a row, so that all do the same work. One thread, timed in seconds of the processor, which other
work on the machine does not stretch. Prints a table and one line of JSON: new tokens per second,
smallest, median and largest of --repeat rounds after one that warms up.

    python scripts/bench_causal.py --model tiny-ar --draft tiny-ar-draft
    python scripts/convert_gguf.py SmolLM2-135M-Instruct.Q4_1.gguf smollm2
    python scripts/bench_causal.py --model smollm2 --prompts 4 --repeat 3
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

import dllm
from dllm.generation import token_ids
from dllm.loading import find
from dllm.zoo import tasks

Answers = list[list[int]]


def theirs(model: Any, prompts: Answers, length: int, batch_size: int, **options: Any) -> Answers:
    """What transformers continues the prompts with, `length` tokens each, rows filled up on the left."""
    answers: Answers = []
    for first in range(0, len(prompts), batch_size):
        rows = prompts[first : first + batch_size]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with torch.no_grad():
            made = model.generate(ids, attention_mask=seen, do_sample=False, max_new_tokens=length, **options)
        answers += made[:, width:].tolist()
    return answers


def interleaved(
    runs: dict[str, Callable[[], Answers]], repeat: int
) -> tuple[dict[str, list[float]], dict[str, Answers]]:
    """New tokens per second of each run, smallest, median, largest, in turn so that drift meets all alike."""
    figures: dict[str, list[float]] = {name: [] for name in runs}
    answers: dict[str, Answers] = {}
    for i in range(repeat + 1):
        for name, run in runs.items():
            began = time.process_time()
            answers[name] = run()
            if i:  # the first round warms up
                figures[name].append(sum(map(len, answers[name])) / (time.process_time() - began))
    return {name: [min(f), statistics.median(f), max(f)] for name, f in figures.items()}, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-ar")
    parser.add_argument("--draft", help="a small model of the same vocabulary")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--gen_length", type=int, default=64)
    parser.add_argument("--k", type=int, default=5, help="tokens that are drafted at most")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    length, k = options.gen_length, options.k
    model = dllm.load(options.model, device="cpu", dtype="float32")
    prompts = [token_ids(model, problem.question, True) for problem in tasks.problems("math", options.prompts)]

    def opened(name: str) -> Any:
        made: Any = transformers.AutoModelForCausalLM.from_pretrained(find(name, None), dtype=torch.float32)
        made.generation_config.eos_token_id, made.generation_config.pad_token_id = None, 0
        return made

    other = opened(options.model)

    def ours(batch_size: int, draft: Any = None) -> Callable[[], Answers]:
        settings: dict[str, Any] = {"gen_length": length, "batch_size": batch_size, "eos_early_stop": False}
        return lambda: dllm.generate_causal(model, prompts, draft, **settings).completions

    def reference(batch_size: int, **more: Any) -> Callable[[], Answers]:
        return lambda: theirs(other, prompts, length, batch_size, **more)

    runs: dict[str, Callable[[], Answers]] = {}
    for n in (1, 8):
        runs[f"transformers, batch {n}"] = reference(n)
        runs[f"dllm, batch {n}"] = ours(n)
    lookup = {"prompt_lookup_num_tokens": k, "max_matching_ngram_size": 3}
    runs["transformers, prompt lookup"] = reference(1, **lookup)
    runs["dllm, ngram"] = ours(1, dllm.speculate.make("ngram", k=k))
    runs["dllm, suffix"] = ours(1, "suffix")
    runs["dllm, recycling"] = ours(1, "recycling:k=16")
    if options.draft:
        small = opened(options.draft)
        small.generation_config.num_assistant_tokens = k
        small.generation_config.num_assistant_tokens_schedule = "constant"
        small.generation_config.assistant_confidence_threshold = 0.0  # always k tokens, as ours
        mine = dllm.load(options.draft, device="cpu", dtype="float32")
        runs["transformers, assisted"] = reference(1, assistant_model=small)
        runs["dllm, model"] = ours(1, dllm.speculate.make("model", model=mine, k=k))
    speed, answers = interleaved(runs, options.repeat)
    table = Table(title=f"new tokens per second, {options.model}, {length} tokens of {len(prompts)} prompts, greedy")
    for column in ("loop", "median", "min", "max", "same answers as transformers"):
        table.add_column(column)
    for name, (low, middle, high) in speed.items():
        same = sum(a == b for a, b in zip(answers[name], answers["transformers, batch 1"], strict=True))
        table.add_row(name, f"{middle:.1f}", f"{low:.1f}", f"{high:.1f}", f"{same}/{len(prompts)}")
    Console(width=120).print(table)
    pairs = {"batch 1": "batch 1", "batch 8": "batch 8", "ngram": "prompt lookup", "model": "assisted"}
    result = {
        "tokens_per_second": {name: [round(x, 1) for x in figures] for name, figures in speed.items()},
        "over_transformers": {
            mine: round(speed[f"dllm, {mine}"][1] / speed[f"transformers, {other}"][1], 2)
            for mine, other in pairs.items()
            if f"dllm, {mine}" in speed
        },
        "conditions": {
            **vars(options),
            "threads": 1,
            "clock": "processor",
            "device": platform.processor() or platform.machine(),
            "dtype": "float32",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
