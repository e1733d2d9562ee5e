"""Decoding speed against a plain Fast-dLLM-style loop on the same weights: python scripts/bench_decode.py

The baseline is written here the straightforward way: one forward per step for the whole batch, keys stored before
rotation and rotated again every step, K/V concatenated, the head on every row, a float64 softmax of all logits, and a
Python loop over the masked tokens. Both take the same steps, so that the ratio is one of cost, not of luck. Every
figure is a median over interleaved repetitions, with the smallest and largest; the last line is JSON.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

import dllm
from dllm.kernels.rotary import rotate
from dllm.models.transformer import Transformer, rotation
from dllm.spec import ModelSpec
from dllm.zoo import tasks

SHAPE_5M = ModelSpec(
    vocab_size=1024,
    n_layers=6,
    n_heads=8,
    n_kv_heads=8,
    head_dim=32,
    hidden_size=256,
    mlp_size=688,
    max_length=2048,
    mask_id=0,
    eos_ids=(1,),
    tied_head=True,
)


class Plain:
    """Fast-dLLM's three generate functions for one prompt and a full-attention model without logits shift."""

    def __init__(self, model: Transformer, cache: str) -> None:
        self.model, self.cache = model, cache
        self.layers: list[Any] = list(model.layers)
        self.past: list[tuple[Tensor, Tensor]] = []

    def forward(self, tokens: Tensor, first: int, keep: int | None) -> Tensor:
        """Logits of the columns from `first` on. With a cache, `keep` columns of the stored K/V are concatenated."""
        spec, h = self.model.spec, self.model.embed(tokens)
        past: list[tuple[Tensor, Tensor]] = []
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(layer.attn_norm(h)).view(1, h.shape[1], -1, spec.head_dim)
            q, k, v = torch.split(qkv, layer.head_counts, 2)
            if self.cache == "dual" and keep is not None:
                before, after = slice(0, first), slice(first + h.shape[1], None)
                k = torch.cat([self.past[i][0][:, before], k, self.past[i][0][:, after]], 1)
                v = torch.cat([self.past[i][1][:, before], v, self.past[i][1][:, after]], 1)
            elif keep is not None:
                k, v = torch.cat([self.past[i][0][:, :keep], k], 1), torch.cat([self.past[i][1][:, :keep], v], 1)
            past.append((k, v))
            columns = torch.arange(k.shape[1])[None]
            q = rotate(q, rotation(spec, columns[:, first : first + q.shape[1]], q.dtype))
            keys = rotate(k, rotation(spec, columns, k.dtype))
            o = F.scaled_dot_product_attention(q.transpose(1, 2), keys.transpose(1, 2), v.transpose(1, 2))
            h = h + layer.out(o.transpose(1, 2).reshape(1, h.shape[1], -1))
            gate, up = layer.gate_up(layer.mlp_norm(h)).chunk(2, -1)
            h = h + layer.down(F.silu(gate) * up)
        if keep is None or self.cache == "dual":
            self.past = past
        logits: Tensor = self.model.head(self.model.norm(h))
        return logits

    def choose(self, logits: Tensor, tokens: Tensor, threshold: float) -> Tensor:
        """The tokens with those revealed whose float64 probability reaches the threshold, the surest one always."""
        masked = tokens.eq(self.model.spec.mask_id or 0)
        proposed = logits.argmax(-1)
        p = F.softmax(logits.double(), -1).gather(-1, proposed[..., None]).squeeze(-1).masked_fill(~masked, -torch.inf)
        _, order = torch.topk(p[0], int(masked.sum()))
        out = tokens.clone()
        for rank, column in enumerate(order):
            if rank and p[0, column] < threshold:
                break
            out[0, column] = proposed[0, column]
        return out

    def generate(
        self, prompt: list[int], gen_length: int, block_length: int, threshold: float
    ) -> tuple[list[int], int]:
        x = torch.tensor([prompt + [self.model.spec.mask_id or 0] * gen_length])
        forwards = 0
        for start in range(len(prompt), x.shape[1], block_length):
            stop, fresh = start + block_length, True
            while x[0, start:stop].eq(self.model.spec.mask_id or 0).any():
                if fresh or self.cache == "none":
                    first, logits = 0, self.forward(x, 0, None)
                elif self.cache == "prefix":
                    first, logits = start, self.forward(x[:, start:], start, start)
                else:
                    first, logits = start, self.forward(x[:, start:stop], start, x.shape[1])
                block = slice(start - first, stop - first)
                x[:, start:stop] = self.choose(logits[:, block], x[:, start:stop], threshold)
                fresh, forwards = False, forwards + 1
        return x[0, len(prompt) :].tolist(), forwards


def interleaved(runs: dict[str, Callable[[], float]], repeat: int) -> dict[str, list[float]]:
    """Each run's figure, smallest, median, largest, over repetitions in turn, so that drift meets all alike."""
    figures: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeat + 1):
        for name, run in runs.items():
            figure = run()
            if i:  # the first round warms up
                figures[name].append(figure)
    return {name: [min(f), statistics.median(f), max(f)] for name, f in figures.items()}


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

    seconds = interleaved({name: timed(name, *pair) for name, pair in CACHES.items()}, repeat)
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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    random = Transformer(SHAPE_5M).requires_grad_(False)
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
    speed = interleaved(runs, options.repeat)

    def overhead() -> float:
        made = dllm.generate(random, [list(range(2, 92))], "static", "dual", steps=128, eos_early_stop=False, **lengths)
        return 1 - made.forward_seconds / made.seconds

    share = interleaved({"overhead": overhead}, options.repeat)["overhead"]
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
            **vars(options),
            "device": platform.processor() or platform.machine(),
            "dtype": "float32",
            "torch": torch.__version__,
            "task": "math",
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
