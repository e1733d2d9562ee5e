"""Measure a bundled model on held-out problems and write its card: python scripts/card_zoo.py dllm/zoo/tiny-llada"""

import argparse
import json
from pathlib import Path
from typing import Any

import dllm
from dllm.evaluate.score import wilson
from dllm.models.transformer import Transformer
from dllm.zoo import tasks

LLADA = (
    "LLaDA's objective (arXiv:2502.09992): a share of the answer masked, the loss on the masked tokens over that share"
)
DREAM = (
    "Dream's objective (arXiv:2508.15487): every column predicts the token of the next; a share of the answer masked,\n"
    "the loss of a masked token weighted by the known ones around it (geometric with p = {cart})"
)
BLOCKWISE = ";\nin {block_share:.0%} of the rows the mask is that of block-wise decoding"
BLOCK = (
    "Fast-dLLM v2's objective (arXiv:2509.26328): blocks of {block_length} tokens, each masked in part behind clean\n"
    "ones and once more with the complementary mask, so that every token of the answer is predicted once"
)
ANSWERS = (
    ".\nThe last {steps:,} of these steps on the greedy answers of {teacher} where these are right,\n"
    "not the generated ones, which leaves fewer ways to say the same (sequence-level distillation, arXiv:1606.07947)"
)
CAUSAL = "Next-token prediction on the answers"
BEFORE = ".\nThe first {steps:,} of these steps were those of masked diffusion models ({families})"
TAUGHT = "Next-token prediction on the answers, with the predictions of {teacher} for targets"
MEASURED = {
    "full": "one token a step, gen_length 64, block_length 32, no cache",
    "block": "one token a step, gen_length 64, blocks of the model, exact cache",
    "causal": "one token a forward, gen_length 64",
}


def stages(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipes of a model's training, one after the other."""
    return [*(stages(facts["first"]) if facts.get("first") else []), facts]


def objective(model: Transformer, facts: dict[str, Any]) -> str:
    """What the model was trained on, as its recipe says."""
    if model.spec.attention == "causal":
        before = stages(facts)[:-1]
        families = " and ".join(stage["family"] for stage in before)
        told = BEFORE.format(steps=sum(s["steps"] for s in before), families=families) if before else ""
        return (TAUGHT if facts.get("teacher") else CAUSAL).format(**facts) + told
    if model.spec.attention == "block":
        taught = [stage for stage in stages(facts) if stage.get("teacher")]
        told = ANSWERS.format(steps=sum(s["steps"] for s in taught), teacher=facts["teacher"]) if taught else ""
        mean = ".\nThe weights are the mean of those before and after the last stage" if facts.get("average") else ""
        return BLOCK.format(**facts) + told + mean
    return ((DREAM if facts.get("cart") else LLADA) + BLOCKWISE).format(**facts)


def answers(model: Transformer, asked: list[str]) -> list[str]:
    """Greedy, one token a step: what parallel decoding is held against."""
    if model.spec.attention == "causal":
        return dllm.generate_causal(model, asked, gen_length=64, batch_size=50).texts or []
    # A block of half the canvas, but for models that have blocks of their own.
    how: dict[str, Any] = {"block_length": 32, "cache": "none"} if model.spec.attention == "full" else {}
    return dllm.generate(model, asked, "static", gen_length=64, batch_size=50, **how).texts or []


def card(folder: Path, n: int) -> None:
    """Measure the exported model on held-out problems and write its model card."""
    model = dllm.load(folder, device="cpu", dtype="float32")
    facts = json.loads((folder / "recipe.json").read_text())
    rows = []
    for task in ("lists", "math", "code"):
        problems = tasks.problems(task, n)
        texts = answers(model, [p.question for p in problems])
        right = [tasks.correct(p, text) for p, text in zip(problems, texts, strict=True)]
        kinds = sorted({p.kind for p in problems}) if task != "code" else []
        for kind in ["all", *kinds]:
            chosen = [ok for p, ok in zip(problems, right, strict=True) if kind in ("all", p.kind)]
            low, high = wilson(sum(chosen), len(chosen))
            share = f"{100 * sum(chosen) / len(chosen):.1f} %"
            rows.append(f"| {task} | {kind} | {len(chosen)} | {share} | {100 * low:.1f} to {100 * high:.1f} % |")
            print(rows[-1], flush=True)
    table, size = "\n".join(rows), model.spec.n_parameters / 1e6
    runs = stages(facts)
    start = runs[0].get("start")
    begun = f"trained from the weights of {start}" if start else "trained from scratch"
    network = {"full": "masked diffusion", "block": "block-diffusion", "causal": "causal"}[model.spec.attention]
    note = facts["note"] + "\n" if "note" in facts else ""
    steps, tokens, seconds = (sum(run[name] for run in runs) for name in ("steps", "tokens", "seconds"))
    (folder / "README.md").write_text(f"""---
license: apache-2.0
library_name: dllm-decode
---
# {folder.name}

A {network} language model of {size:.2f} M parameters in the format of {facts["family"]}, {begun} on
procedurally generated word problems (`math`), word lists (`lists`), small functions (`code`) and sums. It is
made to show and test decoding on a CPU: its answers have several right phrasings, so that revealing too much at once
makes real mistakes. It knows nothing else.

## Accuracy

Held-out problems, greedy, {MEASURED[model.spec.attention]}, float32; 95 % Wilson intervals.
`math` counts the final number, `lists` the exact list (any permutation for shuffle, any one replacement for
replace_random), `code` a body whose syntax tree is one of the task's accepted ones.

| task | kind | n | right | interval |
|---|---|---|---|---|
{table}

## Training

{objective(model, facts)}. {steps:,} steps,
{tokens / 1e6:.1f} M tokens, {seconds / 60:.0f} minutes on {facts["device"]}, seed {facts["seed"]}.
{note}The weights are stored in bfloat16. Repeat with

    python scripts/train_zoo.py {folder.name} --recipe dllm/zoo/{folder.name}/recipe.json --out FOLDER

Weights, tokenizer and generated text: Apache-2.0, as the project.
""")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=500, help="problems per task")
    options = parser.parse_args()
    card(options.folder, options.n)


if __name__ == "__main__":
    main()
