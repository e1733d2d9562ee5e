"""Teach a draft model when to stop: python scripts/train_stop.py tiny-ar tiny-ar-draft --out FOLDER

A head learns, from the draft model's states at every token of the target's own answers, how likely the token that the
draft model would put there is the target's (SpecDec++, arXiv:2405.19715). Then draft with
model:model=DRAFT,k=16,stop=0.7,stop_head=FOLDER.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from medusa_states import Source, cached, opened
from torch import Tensor

from dllm.errors import DllmError
from dllm.loading import load
from dllm.models.transformer import Transformer
from dllm.speculate.partner import partner
from dllm.speculate.stop import StopHead, save_stop

REJECTED = 6.0
"""Weight of a token that is not the target's, as in SpecDec++: there are few, and they are what the head is for."""


@torch.no_grad()
def examples(model: Transformer, files: list[Path]) -> tuple[Tensor, Tensor, Tensor]:
    """Every place: the state (N, C), the drafted token (N,), and whether it is the target's (N,)."""
    found = []
    for hidden, following in (opened(file, 0, model.device) for file in files):
        tokens = torch.cat([model.head(part).argmax(-1) for part in torch.split(hidden, 4096)])
        found.append((hidden, tokens, tokens == following[:, 0]))
    hidden, tokens, right = (torch.cat(parts) for parts in zip(*found, strict=True))
    return hidden, tokens, right


def fit(model: Transformer, files: list[Path], epochs: int, rows: int, learning_rate: float, seed: int) -> StopHead:
    """A head for this draft model, the same for the same arguments."""
    hidden, tokens, right = examples(model, files)
    draw = torch.Generator().manual_seed(seed)
    head = StopHead(model.spec.hidden_size)
    for p in head.parameters():
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5, generator=draw) if p.ndim > 1 else torch.nn.init.zeros_(p)
    head.to(model.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(hidden), generator=draw).to(hidden.device), rows):
            weight = torch.where(right[batch], 1.0, REJECTED)
            logits = head(hidden[batch], model.embed(tokens[batch]))
            loss = F.binary_cross_entropy_with_logits(logits, right[batch].float(), weight)
            if not torch.isfinite(loss):
                raise DllmError(f"the loss is {loss.item()}; lower the learning rate.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation for it
            optimizer.step()
    return head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="a bundled name, a folder or a hub id")
    parser.add_argument("model", help="the draft model, likewise")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--data", help='JSON lines, each {"prompt": "..."}; default the bundled tasks')
    parser.add_argument("--gen-length", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=512, help="places in a batch")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    try:
        target = load(options.target, device=options.device, dtype="float32")
        model = partner(options.model, target, "model")
        source = Source(options.target, options.seed, options.texts, options.data, True, options.gen_length)
        files = cached(source, target, "train", options.texts, options.out / "states", of=model)
        head = fit(model, files, options.epochs, options.rows, options.learning_rate, options.seed)
    except DllmError as error:
        raise SystemExit(f"error: {error}") from error
    hidden, tokens, right = examples(model, cached(source, target, "test", 256, options.out / "states", of=model))
    with torch.no_grad():
        told = head(hidden, model.embed(tokens)) > 0
    facts = {"accepted": float(right.float().mean()), "told": float((told == right).float().mean())}
    save_stop(head, options.out, model, asdict(source) | facts)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
