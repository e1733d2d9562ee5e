"""Train a bundled model from scratch on generated problems: python scripts/train_zoo.py tiny-llada --steps 18000

Everything follows from the recipe (shape, mixture, seed, steps): no download, no clock, no global random state. The run
writes a checkpoint every few hundred steps and goes on from it when started again. The learning rate is constant until
the last part of the run, so a run can be resumed with another --steps as long as that part has not begun.
"""

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from card_zoo import card
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from zoo_objectives import Batch, block_loss, causal_loss, masked_loss

import dllm
from dllm.loading import load
from dllm.models import FAMILIES
from dllm.models.transformer import Transformer
from dllm.zoo import tasks
from dllm.zoo.tokenizer import save_tokenizer, train_tokenizer

ZOO = Path(__file__).parents[1] / "dllm" / "zoo"
POOL = 8  # batches drawn at once and cut by length


@dataclass(frozen=True)
class Recipe:
    """All that a bundled model depends on."""

    family: str = "LLaDAModelLM"
    seed: int = 0
    steps: int = 18000
    rows: int = 32
    learning_rate: float = 3e-3
    muon_learning_rate: float = 0.01
    """Of the layers' matrices other than q, k, v."""
    warmup: int = 200
    decay_share: float = 0.3
    curriculum: int = 2000
    """Steps until problems of every difficulty come up."""
    block_share: float = 0.3
    """Share of rows masked as in block-wise decoding: nothing before some column, everything from a later one on."""
    mixture: dict[str, float] = field(default_factory=lambda: {"math": 0.45, "lists": 0.3, "code": 0.1, "drill": 0.15})
    shape: dict[str, int] = field(default_factory=lambda: {"hidden": 128, "layers": 5, "heads": 4, "mlp": 352})
    start: str = ""
    """A bundled model whose tokenizer and weights the run begins with; what that model lacks begins as usual."""
    block_length: int = 0
    """Of a block-diffusion model."""
    teacher: str = ""
    """A bundled causal model whose tokenizer the run takes. Instead of the texts a causal model learns its predictions,
    and a block-diffusion model its greedy answers where they are right, which leaves fewer ways to say the same."""
    first: dict[str, Any] = field(default_factory=dict)
    """The recipe of the model that the run begins with, if that is not bundled: it is trained first."""
    average: bool = False
    """Export the mean of the weights that the run began with and ended at (arXiv:1803.05407)."""
    cart: float = 0.0
    """Above 0: weigh a masked token by the known ones around it (Dream's CART) instead of by the masked share."""


SCRATCH: dict[str, Any] = {"steps": 14000}
SHIFTED: dict[str, Any] = {
    "family": "DreamModel",
    "seed": 1,
    "steps": 12500,
    "curriculum": 1,
    "cart": 0.1,
    "first": SCRATCH,
}
"""The stages of tiny-ar before its last: a masked diffusion model, then one whose columns predict the next token."""
MASKED: dict[str, Any] = {
    "steps": 5600,
    "warmup": 100,
    "decay_share": 0.4,
    "curriculum": 1,
    "block_share": 0.7,
    "start": "tiny-block",
    "mixture": {"math": 0.4, "lists": 0.35, "code": 0.15, "drill": 0.1},
}
BLOCKS: dict[str, Any] = {"family": "Fast_dLLM_QwenForCausalLM", "curriculum": 1, "block_length": 8}
ON_ANSWERS: dict[str, Any] = BLOCKS | {"teacher": "tiny-ar", "learning_rate": 1.5e-3, "muon_learning_rate": 0.005}
FIRST = BLOCKS | {"seed": 4, "steps": 4000, "start": "tiny-ar"}
SECOND = ON_ANSWERS | {"seed": 5, "steps": 1600, "decay_share": 0.5, "first": FIRST}
"""The stages of tiny-block before its last: on the texts, then on its causal parent's answers."""

RECIPES = {
    # A masked model learns these tasks several times slower than a causal one. So each kind lends the next what it
    # knows, as Dream's authors began with an autoregressive model: causal, then blocks, then the whole canvas.
    "tiny-llada": Recipe(**MASKED, seed=7),
    "tiny-dream": Recipe(**MASKED, family="DreamModel", seed=8, cart=0.1),
    "tiny-ar": Recipe(family="Qwen2ForCausalLM", seed=2, steps=7000, curriculum=1, first=SHIFTED),
    "tiny-ar-draft": Recipe(
        family="Qwen2ForCausalLM",
        seed=3,
        steps=5000,
        teacher="tiny-ar",
        curriculum=500,
        shape={"hidden": 64, "layers": 4, "heads": 4, "mlp": 176},
    ),
    "tiny-block": Recipe(**ON_ANSWERS, seed=6, steps=1100, warmup=50, decay_share=0.7, average=True, first=SECOND),
}


def recipe_of(fields: dict[str, Any]) -> Recipe:
    """The recipe in a recipe.json, which also tells what its run took."""
    return Recipe(**{k: v for k, v in fields.items() if k in Recipe.__dataclass_fields__})


def config_of(recipe: Recipe, tokenizer: Any) -> dict[str, Any]:
    """The config.json of a fresh model, with the family's own keys."""
    shape, ids = recipe.shape, tokenizer.get_vocab()
    named = {
        "vocab_size": tokenizer.get_vocab_size(),
        "mask_token_id": ids["<|mask|>"],
        "eos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    if recipe.family != "LLaDAModelLM":
        masked = recipe.family != "Qwen2ForCausalLM"
        types = {"DreamModel": "Dream", "Qwen2ForCausalLM": "qwen2", "Fast_dLLM_QwenForCausalLM": "Fast_dLLM_Qwen"}
        return {
            "architectures": [recipe.family],
            "model_type": types[recipe.family],
            "hidden_size": shape["hidden"],
            "num_hidden_layers": shape["layers"],
            "num_attention_heads": shape["heads"],
            "num_key_value_heads": shape["heads"],
            "intermediate_size": shape["mlp"],
            "max_position_embeddings": 512,
            "hidden_act": "silu",
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "bos_token_id": ids["<|startoftext|>"],
            **{key: value for key, value in named.items() if masked or key != "mask_token_id"},
            **({"bd_size": recipe.block_length} if recipe.block_length else {}),
        }
    return {
        "architectures": [recipe.family],
        "model_type": "llada",
        "d_model": shape["hidden"],
        "n_layers": shape["layers"],
        "n_heads": shape["heads"],
        "n_kv_heads": shape["heads"],
        "mlp_hidden_size": shape["mlp"],
        "max_sequence_length": 512,
        "rope_theta": 10000.0,
        "rope_full_precision": True,
        "rms_norm_eps": 1e-5,
        "weight_tying": True,
        "include_bias": False,
        "include_qkv_bias": False,
        "embedding_size": tokenizer.get_vocab_size(),
        **named,
    }


def texts(recipe: Recipe, n: int) -> Iterator[str]:
    """Questions and answers to train the tokenizer on."""
    for task in recipe.mixture:
        for index in range(n):
            problem = tasks.make(task, recipe.seed, index)
            yield problem.question
            yield problem.answer


def told(teacher: Transformer, problems: list[tasks.Problem], texts: list[list[int]]) -> list[list[int]]:
    """The teacher's greedy answers where they are right, else the texts'."""
    made = dllm.generate_causal(teacher, [p.question for p in problems], gen_length=64, batch_size=128)
    pairs = zip(problems, made.completions, made.texts or [], texts, strict=True)
    return [
        own[:-1] if own[-1] in teacher.spec.eos_ids and tasks.correct(p, said) else text for p, own, said, text in pairs
    ]


def encode(recipe: Recipe, tokenizer: Any, pool: int, teacher: Transformer | None) -> list[tuple[list[int], list[int]]]:
    """The token ids of prompt and answer of one pool of problems, in order of length."""
    rng = random.Random(f"{recipe.seed}/{pool}")
    names, weights = list(recipe.mixture), list(recipe.mixture.values())
    n = POOL * recipe.rows
    level = min(1.0, 0.2 + pool * POOL / max(1, recipe.curriculum))
    problems = [tasks.make(rng.choices(names, weights)[0], recipe.seed, pool * n + i, "train", level) for i in range(n)]
    head, turn = (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    )
    prompts = tokenizer.encode_batch([f"{head}{p.question.strip()}<|eot_id|>{turn}" for p in problems])
    answers = [a.ids for a in tokenizer.encode_batch([p.answer for p in problems])]
    if teacher is not None and recipe.block_length:
        answers = told(teacher, problems, answers)
    rows = [(p.ids, a) for p, a in zip(prompts, answers, strict=True)]
    return sorted(rows, key=lambda row: len(row[0]) + len(row[1]))


def batches(recipe: Recipe, tokenizer: Any, teacher: Transformer | None, first: int) -> Iterator[Batch]:
    """The batches of the steps from `first` on; each step's batch depends on the recipe alone."""
    eos = tokenizer.token_to_id("<|endoftext|>")
    for pool in range(first // POOL, 1 << 40):
        rows = encode(recipe, tokenizer, pool, teacher)
        rng = random.Random(f"{recipe.seed}/{pool}/order")
        order = rng.sample(range(POOL), POOL)
        # How far the canvas goes on after the answer: mostly a little, sometimes to a whole canvas of 256.
        extras = [rng.choice([rng.randint(0, 4), rng.randint(0, 16), rng.randint(0, 48)]) for _ in range(POOL)]
        if rng.random() < 0.25:
            extras[rng.randrange(POOL)] = rng.randint(64, 256)
        for position, (k, extra) in enumerate(zip(order, extras, strict=True)):
            if pool * POOL + position < first:
                continue
            chosen = rows[k * recipe.rows : (k + 1) * recipe.rows]
            length = min(512, max(len(p) + len(a) for p, a in chosen) + 1 + extra)
            tokens = torch.full((len(chosen), length), eos)
            for row, (p, a) in zip(tokens, chosen, strict=True):
                row[: len(p) + len(a)] = torch.tensor(p + a)
            prompts, answers = (torch.tensor([len(row[i]) for row in chosen]) for i in (0, 1))
            yield Batch(tokens, prompts, answers)


def loss_of(model: Transformer, teacher: Transformer | None, batch: Batch, recipe: Recipe, step: int) -> Tensor:
    """The objective of the recipe's family; what it draws depends on the seed and the step."""
    if model.spec.attention == "causal":
        return causal_loss(model, batch, teacher)
    draw = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    if model.spec.attention == "block":
        return block_loss(model, batch, draw)
    return masked_loss(model, batch, recipe.block_share, recipe.cart, draw)


class Trainer:
    """Model, optimizers and where the run stands; saved as safetensors, never pickled."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device) -> None:
        self.recipe, self.folder, self.device, self.step = recipe, folder, device, 0
        self.tokens, self.seconds = 0, 0.0
        self.family = FAMILIES[recipe.family]
        path = folder / "tokenizer.json"
        begin = folder / "first" if recipe.first else ZOO / recipe.start if recipe.start else None
        lender = begin or (ZOO / recipe.teacher if recipe.teacher else None)
        if lender:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(lender / file, folder)
        elif not path.exists():
            save_tokenizer(train_tokenizer(texts(recipe, 6000)), folder)
        self.tokenizer = Tokenizer.from_file(str(path))
        self.teacher = load(ZOO / recipe.teacher, dtype="float32", device=device) if recipe.teacher else None
        self.config = config_of(recipe, self.tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.model = Transformer(self.family.spec(self.config))
            for name, p in self.model.named_parameters():
                if p.ndim == 2:
                    torch.nn.init.normal_(p, std=0.02 if "embed" in name else p.shape[1] ** -0.5)
                if ".out." in name or ".down." in name:  # the residual branches start at nothing
                    torch.nn.init.zeros_(p)
                if name.endswith("bias"):
                    torch.nn.init.zeros_(p)
        if begin:
            given = dict(load(begin, dtype="float32", device="cpu").named_parameters())
            for name, p in self.model.named_parameters():
                if name in given:
                    p.data.copy_(given[name])
        self.model.to(device)
        groups: dict[str, list[torch.nn.Parameter]] = {"matrices": [], "qkv": [], "others": []}
        for name, p in self.model.named_parameters():
            matrix = name.startswith("layers") and p.ndim == 2
            groups["others" if not matrix else "qkv" if "qkv" in name else "matrices"].append(p)
        r = recipe
        # Muon learns these tasks in about half the tokens, but without a norm on q and k it saturates attention when it
        # trains their projections too (logits of 300 after 1,500 steps); those are AdamW's.
        self.optimizers = [
            torch.optim.Muon(
                groups["matrices"], lr=r.muon_learning_rate, weight_decay=0.1, momentum=0.95, nesterov=True
            ),
            torch.optim.AdamW(groups["qkv"], lr=r.learning_rate / 2, betas=(0.9, 0.95), weight_decay=0.05),
            torch.optim.AdamW(groups["others"], lr=r.learning_rate, betas=(0.9, 0.95), weight_decay=0.01),
        ]
        self.rates = [group["lr"] for o in self.optimizers for group in o.param_groups]
        self.resume()

    def rate(self) -> float:
        """The factor on the learning rates: warm-up, constant, then straight to zero."""
        r = self.recipe
        return min(1.0, (self.step + 1) / r.warmup, (r.steps - self.step) / max(1.0, r.decay_share * r.steps))

    def train_step(self, batch: Batch) -> float:
        for optimizer, lr in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * self.rate()
        loss = loss_of(self.model, self.teacher, batch, self.recipe, self.step)
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"the loss is {loss.item()} at step {self.step}; lower the learning rate. {self.folder} is unharmed."
            )
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation for it
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch.tokens.numel()
        return float(loss.detach())

    def state(self) -> dict[str, Tensor]:
        tensors = {f"model.{n}": p.detach() for n, p in self.model.named_parameters()}
        for optimizer in self.optimizers:
            for name, p in self.model.named_parameters():
                tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state.get(p, {}).items()}
        return {name: value.clone().contiguous() for name, value in tensors.items()}

    def save(self) -> None:
        """Replace the training state atomically."""
        temporary = self.folder / "training.safetensors.tmp"
        facts = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds, "recipe": asdict(self.recipe)}
        metadata = {key: json.dumps(value) for key, value in facts.items()}
        save_file(self.state(), temporary, metadata=metadata)
        os.replace(temporary, self.folder / "training.safetensors")

    def resume(self) -> None:
        path = self.folder / "training.safetensors"
        if not path.exists():
            return
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            self.step, self.tokens, self.seconds = (
                json.loads(metadata.get(k, "0")) for k in ("step", "tokens", "seconds")
            )
            saved = Recipe(**json.loads(metadata["recipe"]))
            if replace(saved, steps=self.recipe.steps) != self.recipe:
                raise SystemExit(f"{path} belongs to another recipe ({saved}); remove it, or give another --out.")
            slots: dict[str, dict[str, Tensor]] = {}
            parameters = dict(self.model.named_parameters())
            for key in file.keys():  # noqa: SIM118  # safe_open is not a dict
                kind, _, rest = key.partition(".")
                if kind == "model":
                    parameters[rest].data.copy_(file.get_tensor(key))
                else:
                    name, _, slot = rest.rpartition(".")
                    slots.setdefault(name, {})[slot] = file.get_tensor(key)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    name = next(n for n, q in parameters.items() if q is p)
                    if name in slots:
                        # A step count stays where the optimizer keeps it, on the CPU.
                        optimizer.state[p] = {k: v.to(self.device) if v.ndim else v for k, v in slots[name].items()}

    def export(self) -> None:
        """Write the checkpoint in its family's format, bfloat16, with the recipe that repeats it."""
        where = f"{torch.get_num_threads()} CPU threads" if self.device.type == "cpu" else torch.cuda.get_device_name()
        facts = {"tokens": self.tokens, "seconds": round(self.seconds), "device": where}
        if self.recipe.average:
            begun = dict(load(self.folder / "first", dtype="float32", device=self.device).named_parameters())
            for name, p in self.model.named_parameters():
                p.data.lerp_(begun[name], 0.5)
        tensors = {
            n: t.to("cpu", torch.bfloat16) for n, t in self.family.checkpoint(self.model, self.model.spec).items()
        }
        temporary = self.folder / "model.safetensors.tmp"
        save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, self.folder / "model.safetensors")
        shutil.copy(Path(__file__).parents[1] / "LICENSE", self.folder)
        (self.folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        (self.folder / "recipe.json").write_text(json.dumps(asdict(self.recipe) | facts, indent=2) + "\n")


def train(recipe: Recipe, folder: Path, options: argparse.Namespace) -> None:
    """Train from where the run stands in the folder to its end, and export the model there."""
    if recipe.first and not (folder / "first" / "model.safetensors").exists():
        train(recipe_of(recipe.first), folder / "first", options)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, folder, torch.device(options.device))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    before, began, tokens, mean = trainer.seconds, time.monotonic(), 0, 0.0
    with Progress(*columns, refresh_per_second=1) as progress:
        bar = progress.add_task(options.name, total=recipe.steps, completed=trainer.step)
        stream = batches(recipe, trainer.tokenizer, trainer.teacher, trainer.step)
        while trainer.step < recipe.steps:
            batch = next(stream)
            loss = trainer.train_step(batch)
            tokens += batch.tokens.numel()
            mean = loss if not mean else 0.98 * mean + 0.02 * loss
            if trainer.step % 10 == 0:
                rate = tokens / (time.monotonic() - began)
                progress.update(
                    bar, completed=trainer.step, description=f"{options.name}  loss {mean:.3f}  {rate:,.0f} tokens/s"
                )
            trainer.seconds = before + time.monotonic() - began
            if trainer.step % options.save_every == 0 or trainer.step == recipe.steps:
                trainer.save()
                print(
                    json.dumps(
                        {
                            "step": trainer.step,
                            "loss": round(mean, 4),
                            "tokens_per_second": round(tokens / (time.monotonic() - began)),
                        }
                    ),
                    flush=True,
                )
    trainer.export()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--out", type=Path, help="folder to write to; default dllm/zoo/NAME")
    parser.add_argument("--recipe", type=Path, help="a recipe.json to repeat")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--card", type=int, default=500, help="problems per task that the model card is measured on")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = RECIPES[options.name]
    if options.recipe:
        fields = json.loads(options.recipe.read_text())
        recipe = recipe_of(fields)
    if options.steps:
        recipe = replace(recipe, steps=options.steps)
    folder = options.out or ZOO / options.name
    train(recipe, folder, options)
    card(folder, options.card)


if __name__ == "__main__":
    main()
