"""Distil a model to be certain of its own answers: python scripts/train_dparallel.py tiny-llada --out runs/dparallel

dParallel (arXiv:2509.26488): the model learns its own answers, one token a step, with a block of them half masked and
all behind it masked, and is made more certain of what it already gets right. The result is a checkpoint of the same
family, for the samplers dparallel and threshold. Answers are collected once, by as many processes as torchrun starts;
training writes its state every so many steps. Both go on where they stopped if the same command is given again.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

import dllm
from dllm.cache.base import full_view
from dllm.canvas import Span
from dllm.errors import DllmError
from dllm.evaluate.store import replace_file
from dllm.filters import prompts
from dllm.filters.collect import Collection, Decoding, asked_of
from dllm.filters.files import replace_bytes, save
from dllm.filters.traces import Traces
from dllm.loading import SMALL, family_of, find, read_config
from dllm.models.transformer import Transformer
from dllm.samplers.base import check_at_least, check_probability, check_whole
from dllm.weights import opened

LAYERS = ["qkv", "out", "gate_up", "down"]
"""Where adapters are put: every matrix of a layer."""


@dataclass(frozen=True)
class Recipe:
    """All that the weights depend on besides the model, its prompts and its answers."""

    steps: int = 2000
    rows: int = 16
    """Answers of a step; each is seen with a mask and with its complement."""
    learning_rate: float = 1e-4
    warmup: int = 50
    certainty: float = 2.0
    """The weight of the entropy: 2 for LLaDA, 1 for Dream in the paper."""
    temperature: float = 0.5
    """At which the entropy is taken."""
    share: float | None = 0.5
    """Of the block that is masked, the rest in the complement; None draws it for every row."""
    lora: int = 0
    """The rank of adapters, which are trained alone and merged at the end; 0 trains all weights."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises DllmError for values that cannot be."""
        for name, least in (("steps", 1), ("rows", 1), ("warmup", 1), ("lora", 0), ("seed", 0)):
            check_whole(name, getattr(self, name), least, "see --help")
        for name in ("learning_rate", "certainty"):
            check_at_least(name, getattr(self, name), 0, "see --help")
        if self.share is not None:
            check_probability("share", self.share, "masked in the complement alone", "in the first half alone")


@dataclass(frozen=True)
class Answers:
    """Prompts and the model's answers to them, filled with its end of text."""

    prompts: list[list[int]]
    answers: Tensor
    """(N, G)"""
    blocks: Tensor
    """How many blocks of each answer hold text or its end. (N,)"""

    @classmethod
    def of(cls, asked: Collection) -> "Answers":
        """What was collected."""
        answers, width = Traces.read(asked.paths).answer, asked.decoding.block_length
        ended = torch.isin(answers, torch.tensor(asked.model.spec.eos_ids))
        last = torch.where(ended.any(1), ended.long().argmax(1), answers.shape[1] - 1)
        return cls([request.prompt for request in asked.asked], answers, last // width + 1)


@dataclass(frozen=True)
class Batch:
    """Rows with a mask, then the same rows with its complement: 2 B rows of L columns, a block of W of them."""

    tokens: Tensor
    lengths: list[int]
    span: Span
    targets: Tensor
    masked: Tensor
    """Where the block is masked, (2 B, W)."""


def batch_of(data: Answers, model: Transformer, width: int, recipe: Recipe, step: int) -> Batch:
    """The batch of a step, which depends on the recipe alone."""
    draw, mask_id = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step), model.spec.mask_id or 0
    rows = torch.randint(len(data.prompts), (recipe.rows,), generator=draw)
    answers, size = data.answers[rows], data.answers.shape[1]
    block = (torch.rand(recipe.rows, generator=draw) * data.blocks[rows]).long()
    share = torch.rand(recipe.rows, 1, generator=draw) if recipe.share is None else recipe.share
    masked = torch.rand(recipe.rows, width, generator=draw) < share
    start, stop = block * width, ((block + 1) * width).clamp(max=size)
    place = Span.between(start, stop, width)
    lengths = [len(data.prompts[i]) + size for i in rows.tolist()]
    tokens = torch.full((2, recipe.rows, max(lengths)), model.spec.eos_ids[0])
    for j, (i, length) in enumerate(zip(rows.tolist(), lengths, strict=True)):
        behind = torch.where(torch.arange(size) >= stop[j], mask_id, answers[j])
        tokens[:, j, :length] = torch.cat([torch.tensor(data.prompts[i]), behind])
    columns = place.columns + torch.tensor(lengths)[:, None] - size
    targets = answers.gather(1, place.columns)
    both = torch.stack([masked, ~masked]) & place.valid
    for half, where in zip(tokens, both, strict=True):
        # Adding the difference leaves a column that the span repeats as padding to its one valid entry.
        half.scatter_add_(1, columns, ((mask_id - half.gather(1, columns)) * where))
    twice = Span(columns.repeat(2, 1), place.valid.repeat(2, 1))
    return Batch(tokens.flatten(0, 1), lengths * 2, twice, targets.repeat(2, 1), both.flatten(0, 1))


def loss_of(model: nn.Module, spec: Any, batch: Batch, recipe: Recipe, device: torch.device) -> Tensor:
    """Cross-entropy of the masked tokens, of both masks, and the entropy where they are predicted right already."""
    span = Span(batch.span.columns.to(device), batch.span.valid.to(device))
    logits = model(batch.tokens.to(device), full_view(spec, batch.lengths, device), span).float()
    targets, masked = batch.targets.to(device), batch.masked.to(device)
    ce = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    log_p = (logits / recipe.temperature).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    certain = masked & (logits.argmax(-1) == targets)
    parts = zip(*(part.chunk(2) for part in (ce, entropy, masked, certain)), strict=True)
    return torch.stack([mean(c, m) + recipe.certainty * mean(h, right) for c, h, m, right in parts]).sum()


def mean(value: Tensor, where: Tensor) -> Tensor:
    """Of the values there; 0 of none."""
    return (value * where).sum() / where.sum().clamp(min=1)


class Trainer:
    """Model, optimizer and where the run stands; its state is safetensors, replaced at once."""

    def __init__(self, model: Transformer, data: Answers, width: int, recipe: Recipe, folder: Path) -> None:
        self.model, self.data, self.width, self.recipe, self.folder = model, data, width, recipe, folder
        self.step, self.spec, self.net = 0, model.spec, adapted(model, recipe)
        self.trained = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=recipe.learning_rate, weight_decay=0.01)
        self.path = folder / "training.safetensors"
        # How far to go is no part of what a state belongs to: more steps may be asked for later.
        self.facts = asdict(recipe) | {"steps": None, "answers": sha256(data.answers.numpy().tobytes()).hexdigest()}
        if self.path.exists():
            self.resume()

    def train_step(self) -> float:
        batch = batch_of(self.data, self.model, self.width, self.recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * min(1.0, (self.step + 1) / self.recipe.warmup)
        loss = loss_of(self.net, self.spec, batch, self.recipe, self.model.device)
        if not loss.isfinite():
            raise DllmError(
                f"the loss is {loss.item()} at step {self.step}; lower the learning rate. {self.path} is unharmed."
            )
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation for it
        torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()

    def save(self) -> None:
        state = {f"model.{name}": p.clone() for name, p in self.trained.items()}
        for name, p in self.trained.items():
            state |= {f"optimizer.{name}.{key}": value for key, value in self.optimizer.state[p].items()}
        save(self.path, state, run={"step": self.step, "facts": self.facts})

    def resume(self) -> None:
        """Raises DllmError for the state of another run, and for one that is cut short."""
        with opened(self.path) as file:
            run = json.loads((file.metadata() or {}).get("run", "{}"))
        if run.get("facts") != self.facts:
            raise DllmError(f"{self.path} belongs to another recipe or other answers; give another --out.")
        self.step = run["step"]
        for key, value in load_file(self.path).items():
            kind, _, rest = key.partition(".")
            if kind == "model":
                self.trained[rest].data.copy_(value)
            else:
                name, _, slot = rest.rpartition(".")
                # A step count stays where the optimizer keeps it, on the CPU.
                self.optimizer.state[self.trained[name]][slot] = value.to(self.model.device) if value.ndim else value

    def export(self, source: Path, facts: dict[str, Any]) -> None:
        """Write a checkpoint in the model's family, in bfloat16, adapters merged."""
        net: Any = self.net
        model = net.merge_and_unload() if self.recipe.lora else self.model
        family = family_of(read_config(source), source)
        tensors = family.checkpoint(model, self.spec)
        for file in (file for pattern in SMALL for file in source.glob(pattern)):
            if file.name != "recipe.json" and not file.name.endswith("index.json"):
                shutil.copy(file, self.folder)
        weights = {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()}
        replace_bytes(self.folder / "model.safetensors", to_bytes(weights, {"format": "pt"}))
        replace_file(self.folder / "recipe.json", json.dumps(asdict(self.recipe) | facts, indent=2) + "\n")


def adapted(model: Transformer, recipe: Recipe) -> nn.Module:
    """The network that is trained: the model, or the model with adapters (LoRA, arXiv:2106.09685)."""
    model.requires_grad_(not recipe.lora).train()
    if not recipe.lora:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise DllmError("--lora needs peft; install it with pip install 'dllm-decode[train]'.") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = get_peft_model(model, LoraConfig(r=recipe.lora, lora_alpha=recipe.lora, target_modules=LAYERS))
    assert isinstance(net, nn.Module)
    return net


def progress(trainer: Trainer) -> Iterator[int]:
    """Steps until the last one, with a bar, a line now and then, and the mean loss."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    mean_loss = 0.0
    with Progress(*columns, TimeRemainingColumn(), refresh_per_second=1) as bar:
        job = bar.add_task("distilling", total=trainer.recipe.steps, completed=trainer.step)
        while trainer.step < trainer.recipe.steps:
            loss = trainer.train_step()
            mean_loss = loss if not mean_loss else 0.98 * mean_loss + 0.02 * loss
            bar.update(job, completed=trainer.step, description=f"loss {mean_loss:.3f}")
            if trainer.step % 100 == 0:
                print(json.dumps({"step": trainer.step, "loss": round(mean_loss, 4)}), flush=True)
            yield trainer.step


def distil(options: argparse.Namespace, recipe: Recipe) -> None:
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    model = dllm.load(options.model, device=options.device, dtype=options.dtype)
    decoding = Decoding.of(options.cache, options.gen_length, options.block_length, options.batch_size)
    if options.prompts:
        asked = prompts.of_file(options.prompts)
    else:
        names = options.task.split(",")
        asked = prompts.of_tasks(names, -(-options.n // len(names)))
    folder: Path = options.out
    found = prompts.chosen(asked, options.n, recipe.seed)
    collection = Collection(model, asked_of(model, found, decoding), decoding, folder / "answers")
    collection.make(rank, world_size, lambda n, of: print(json.dumps({"answers": n, "of": of}), flush=True))
    if rank != 0:
        return
    trainer, began = Trainer(model, Answers.of(collection), decoding.block_length, recipe, folder), time.monotonic()
    for step in progress(trainer):
        if step % options.save_every == 0 or step == recipe.steps:
            trainer.save()
    facts = {"from": options.model, "prompts": len(found), "seconds": round(time.monotonic() - began)}
    trainer.export(find(options.model, None), facts | {"dllm": dllm.__version__} | decoding.facts())
    print(f"{folder}: dllm compare --model {folder} --samplers static,dparallel,threshold")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="bundled name, folder or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for answers, state and checkpoint")
    parser.add_argument("--task", default="lists,math,code", help="prompts: training problems [%(default)s]")
    parser.add_argument("--prompts", type=Path, help="or a file of prompts")
    parser.add_argument("--n", type=int, default=2400, help="prompts [%(default)s]")
    for name, value in (("gen-length", 64), ("block-length", 32), ("batch-size", 32), ("save-every", 100)):
        parser.add_argument(f"--{name}", type=int, default=value, help="[%(default)s]")
    parser.add_argument("--cache", default="none", help="with which the answers are decoded [%(default)s]")
    parser.add_argument("--device", help="cpu, cuda, ...; by default a GPU if there is one")
    parser.add_argument("--dtype", help="of the weights in training; by default float32 on a CPU")
    for name in ("steps", "rows", "lora", "seed", "warmup"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Recipe, name), help="[%(default)s]")
    for name in ("learning-rate", "certainty"):
        value = getattr(Recipe, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=float, default=value, help="[%(default)s]")
    parser.add_argument("--share", default="0.5", help="of a block that is masked, or random [%(default)s]")
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in asdict(Recipe()) if hasattr(options, name)}
    try:
        share = None if options.share == "random" else float(options.share)
        distil(options, replace(Recipe(), **given | {"share": share}))
    except (DllmError, OSError, ValueError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
