"""Train draft heads for a causal model: python scripts/train_medusa.py tiny-ar --kind hydra --distill

The model stays as it is. Its last hidden states are computed once; then the heads learn from them (Medusa-1,
arXiv:2401.10774; Hydra, arXiv:2402.05109). Everything follows from the recipe. The run writes where it stands after
every part of the data and goes on from there when started again.
"""

import argparse
import json
import math
import os
import random
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from medusa_states import Source, cached, opened
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dllm.errors import DllmError
from dllm.fingerprint import fingerprint
from dllm.loading import ZOO, load
from dllm.models.transformer import Transformer
from dllm.speculate.heads import KINDS, Heads, save
from dllm.speculate.trim import frequent

RANKS = 10
"""Guesses of a head whose accuracy is measured: a tree has at most so many siblings."""
FADE = 0.8
"""Head k counts FADE**k in the loss, as in Medusa."""


@dataclass(frozen=True)
class Recipe:
    """All that heads depend on, besides the texts."""

    kind: str = "medusa"
    n_heads: int = 3
    seed: int = 0
    epochs: int = 8
    rows: int = 512
    """Places in a batch."""
    learning_rate: float = 5e-3
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises; then it falls as a cosine."""


def loss_of(model: Transformer, heads: Heads, hidden: Tensor, following: Tensor) -> Tensor:
    """The cross-entropy of every head's token, those nearer weighing more."""
    total = hidden.new_zeros(())
    for k, logits in enumerate(guesses(model, heads, hidden, following), 1):
        errors = F.cross_entropy(logits.float(), following[:, k], ignore_index=-1, reduction="sum")
        total = total + FADE**k * errors / (following[:, k] >= 0).sum().clamp(min=1)
    return total


def guesses(model: Transformer, heads: Heads, hidden: Tensor, following: Tensor) -> list[Tensor]:
    """The logits (N, V) of every head, each given the true tokens in between."""
    between = [model.embed(tokens) for tokens in following.clamp(min=0).unbind(1)]
    return [model.head(heads(k, hidden, between[:k])) for k in range(1, heads.n_heads + 1)]


@torch.no_grad()
def accuracy(model: Transformer, heads: Heads, files: list[Path]) -> list[list[float]]:
    """How often each rank of each head is the true token, where the text goes on so far."""
    right, of = torch.zeros(heads.n_heads, min(RANKS, model.spec.vocab_size)), torch.zeros(heads.n_heads, 1)
    for hidden, following in (opened(file, heads.n_heads, model.device) for file in files):
        for k, logits in enumerate(guesses(model, heads, hidden, following)):
            there, true = following[:, k + 1] >= 0, following[:, k + 1, None]
            right[k] += ((logits.topk(right.shape[1]).indices == true) & there[:, None]).sum(0).cpu()
            of[k] += there.sum().cpu()
    return [[round(p, 4) for p in row] for row in (right / of.clamp(min=1)).tolist()]


def places(file: Path) -> int:
    """How many hidden states a part holds."""
    with safe_open(file, "pt") as opening:
        return int(opening.get_slice("next").get_shape()[0])


class Trainer:
    """Heads, optimizer and where the run stands; saved as safetensors, never pickled."""

    def __init__(self, model: Transformer, recipe: Recipe, files: list[Path], folder: Path) -> None:
        self.model, self.recipe, self.files, self.path = model, recipe, files, folder / "training.safetensors"
        self.parts, self.step, self.seconds = 0, 0, 0.0
        self.heads = Heads(recipe.n_heads, model.spec.hidden_size, recipe.kind == "hydra").to(model.device)
        self.optimizer = torch.optim.AdamW(self.heads.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
        self.total = recipe.epochs * sum(-(-places(file) // recipe.rows) for file in files)
        self.resume()

    def shuffled(self, n: int, *place: int) -> Tensor:
        """The numbers below n in an order that depends on the seed and on this place in the run."""
        seed = random.Random(f"{self.recipe.seed}/{place}").getrandbits(62)
        return torch.randperm(n, generator=torch.Generator().manual_seed(seed))

    def rate(self) -> float:
        """The factor on the learning rate."""
        rise = max(1.0, self.recipe.warmup * self.total)
        if self.step < rise:
            return (self.step + 1) / rise
        return 0.5 + 0.5 * math.cos(math.pi * (self.step - rise) / max(1.0, self.total - rise))

    def train(self) -> None:
        """Take the parts that are left, and write after each of them."""
        while self.parts < self.recipe.epochs * len(self.files):
            began, epoch = time.monotonic(), self.parts // len(self.files)
            part = int(self.shuffled(len(self.files), epoch)[self.parts % len(self.files)])
            hidden, following = opened(self.files[part], self.recipe.n_heads, self.model.device)
            loss = self.train_part(hidden, following, self.shuffled(len(hidden), epoch, part))
            self.parts += 1
            self.seconds += time.monotonic() - began
            self.save()
            print(json.dumps({"epoch": epoch, "part": part, "loss": round(loss, 4)}), flush=True)

    def train_part(self, hidden: Tensor, following: Tensor, order: Tensor) -> float:
        """One pass over a part's places in this order. Returns the mean loss."""
        total, batches = 0.0, torch.split(order.to(hidden.device), self.recipe.rows)
        for batch in batches:
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * self.rate()
            loss = loss_of(self.model, self.heads, hidden[batch], following[batch])
            if not torch.isfinite(loss):
                raise DllmError(
                    f"the loss is {loss.item()} at step {self.step}; lower the learning rate. {self.path} is unharmed."
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation for it
            self.optimizer.step()
            self.step += 1
            total += float(loss.detach())
        return total / len(batches)

    def save(self) -> None:
        """Replace the training state atomically."""
        tensors = {f"heads.{name}": p.detach() for name, p in self.heads.named_parameters()}
        for name, p in self.heads.named_parameters():
            tensors |= {f"optimizer.{name}.{key}": value for key, value in self.optimizer.state[p].items()}
        facts = {"parts": self.parts, "step": self.step, "seconds": self.seconds, "recipe": asdict(self.recipe)}
        temporary = self.path.with_suffix(".safetensors.tmp")
        copies = {name: value.clone().contiguous() for name, value in tensors.items()}
        save_file(copies, temporary, metadata={key: json.dumps(value) for key, value in facts.items()})
        os.replace(temporary, self.path)

    def resume(self) -> None:
        if not self.path.exists():
            return
        with safe_open(self.path, "pt") as file:
            metadata = file.metadata()
            if json.loads(metadata["recipe"]) != asdict(self.recipe):
                raise DllmError(
                    f"{self.path} belongs to another recipe ({metadata['recipe']}); remove it, or give another --out."
                )
            self.parts, self.step, self.seconds = (json.loads(metadata[key]) for key in ("parts", "step", "seconds"))
            for name, p in self.heads.named_parameters():
                p.data.copy_(file.get_tensor(f"heads.{name}"))
                slots = {key: file.get_tensor(f"optimizer.{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
                self.optimizer.state[p] = {k: v.to(p.device) if v.ndim else v for k, v in slots.items()}


CARD = """---
license: apache-2.0
library_name: dllm-decode
---
# {kind} heads of {model}

{n_heads} heads that guess the tokens behind the next one from {model}'s last hidden state{also}, for
`dllm.generate_causal(model, prompts, draft="{kind}")`. They end in the model's own head; their own parameters are
{size:.2f} M.

How often the first, second, ... guess of each head is the true token on {held_out} held-out texts{given}:

{table}

{texts} texts, {answers}, {epochs} epochs, {minutes:.1f} minutes on {device}, seed {seed}. Repeat with

    python scripts/train_medusa.py {command}
"""


def card(recipe: Recipe, source: Source, trainer: Trainer, config: dict[str, Any], command: str) -> str:
    """What the heads' README says."""
    device = trainer.model.device
    rows = [f"| {k} | " + " | ".join(f"{p:.3f}" for p in row[:4]) + " |" for k, row in enumerate(config["accuracy"], 1)]
    return CARD.format(
        **asdict(recipe) | {"model": Path(source.model).name, "texts": f"{config['texts']:,}"},
        also=" and the guesses before theirs" if recipe.kind == "hydra" else "",
        given=", given the true tokens before it" if recipe.kind == "hydra" else "",
        size=sum(p.numel() for p in trainer.heads.parameters()) / 1e6,
        held_out=config["held_out"],
        table="\n".join(["| head | 1st | 2nd | 3rd | 4th |", "|---|---|---|---|---|", *rows]),
        answers="the model's own greedy answers" if source.distill else "their given answers",
        minutes=trainer.seconds / 60,
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
        command=command,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a bundled name, a folder or a hub id")
    parser.add_argument("--kind", choices=KINDS, default="medusa")
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--texts", type=int, default=4000, help="to train on")
    parser.add_argument("--held-out", type=int, default=256, help="texts to measure on")
    parser.add_argument("--data", help='JSON lines, each {"prompt": "...", "answer": "..."}; default the bundled tasks')
    parser.add_argument("--distill", action="store_true", help="train on the model's own greedy answers")
    parser.add_argument("--gen-length", type=int, default=128, help="most tokens of these")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--rows", type=int, default=Recipe.rows, help="places in a batch")
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the heads; default the bundled model's own")
    parser.add_argument("--states", type=Path, help="folder of the hidden states, for both kinds; default OUT/states")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        train(options)
    except DllmError as error:
        raise SystemExit(f"error: {error}") from error


def train(options: argparse.Namespace) -> None:
    """Everything from the model's name to the finished folder."""
    if options.out is None and not (ZOO / options.model).is_dir():
        raise DllmError(f"{options.model!r} is no bundled model; give --out, the folder to write the heads to.")
    for name in ("heads", "texts", "held_out", "epochs", "rows"):
        if getattr(options, name) < 1:
            raise DllmError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1.")
    folder = options.out or ZOO / options.model / options.kind
    folder.mkdir(parents=True, exist_ok=True)
    model = load(options.model, device=options.device, dtype="float32")
    if model.spec.attention != "causal":
        raise DllmError(
            f"{options.model!r} is not autoregressive; heads draft for a model that predicts the next token."
        )
    source = Source(options.model, options.seed, options.texts, options.data, options.distill, options.gen_length)
    recipe = Recipe(options.kind, options.heads, options.seed, options.epochs, options.rows, options.learning_rate)
    states = options.states or folder / "states"
    files = cached(source, model, "train", options.texts, states)
    held_out = cached(source, model, "test", options.held_out, states)
    trainer = Trainer(model, recipe, files, folder)
    trainer.train()
    seen = (load_file(file)["next"].tolist() for file in files)
    config: dict[str, Any] = {
        "target": fingerprint(model),
        "held_out": sum(1 for _ in source.pairs("test", options.held_out)),
        "texts": sum(1 for _ in source.pairs("train", options.texts)),
        "accuracy": accuracy(model, trainer.heads.eval(), held_out),
        "frequent": frequent(seen, model.spec.eos_ids),
        "recipe": asdict(recipe) | asdict(source) | {"seconds": round(trainer.seconds)},
    }
    save(trainer.heads, folder, config)
    (folder / "README.md").write_text(card(recipe, source, trainer, config, shlex.join(sys.argv[1:])))
    print(json.dumps({"accuracy": [row[:4] for row in config["accuracy"]], "seconds": round(trainer.seconds)}))


if __name__ == "__main__":
    main()
