"""What samples amount to, in the layout of lm-evaluation-harness's files (0.4.13), and ours beside it."""

import hashlib
import json
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from dllm.evaluate.answers import TOTALS, Answer, CausalMethod, Method
from dllm.evaluate.score import pass_at_k, wilson
from dllm.evaluate.store import Sample
from dllm.evaluate.tasks.base import Question, Task
from dllm.metrics import Totals

COUNTS = ("nfe", "prefills", "committed", "rows", "answer_tokens", "generated_tokens", "canvas_tokens")
"""Fields of answers and samples that are summed."""
TIMES = ("timing", "date")
"""Fields of samples and results that differ between two runs with the same answers."""

TRIES = (1, 2, 5, 10, 20, 50, 100)
"""k of pass@k."""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sample(
    task: Task, question: Question, answer: Answer, method: Method | CausalMethod, timing: Mapping[str, Any]
) -> Sample:
    """A line of the samples file: its names, and below them our counts. A metric is the mean over the answers."""
    scores = [task.score(question, text) for text in answer.texts]
    values = {name: sum(score[name] for score in scores) / len(scores) for name in task.metrics}
    metric, _, kind = task.metrics[0].partition(",")
    settings = method.settings
    arguments = {"until": list(settings.stop), "max_gen_toks": settings.gen_length, "temperature": settings.temperature}
    return {
        "doc_id": answer.index,
        "doc": dict(question.record),
        "target": question.target,
        "arguments": {"gen_args_0": {"arg_0": answer.prompt, "arg_1": arguments}},
        "resps": [list(answer.texts)],
        "filtered_resps": [score.get("extracted", text) for score, text in zip(scores, answer.texts, strict=True)],
        "filter": kind or "none",
        "metrics": list(task.metrics),
        "doc_hash": digest(json.dumps(dict(question.record), indent=2, ensure_ascii=False)),
        "prompt_hash": digest(answer.prompt),
        "target_hash": digest(question.target),
        metric: values[task.metrics[0]],
        **values,
        "id": question.id,
        "scores": scores,
        "empty": sum(not text.strip() for text in answer.texts),
        **{name: getattr(answer, name) for name in COUNTS},
        "timing": {
            **timing,
            **{name: getattr(answer, name) for name in ("decode_tokens", "first_seconds", *TOTALS)},
        },
    }


def mean(samples: Sequence[Sample], metric: str) -> float:
    return float(sum(s[metric] for s in samples) / len(samples))


def interval(samples: Sequence[Sample], metric: str) -> tuple[float, float]:
    """The 95 % interval of a metric's mean: Wilson's where every sample is 0 or 1, else normal, cut to [0, 1].

    Samples that all have one share between say nothing of their spread: these too get Wilson's, of so many questions.
    """
    n, share = len(samples), mean(samples, metric)
    half = 1.96 * error(samples, metric)
    if not half or all(s[metric] in (0, 1) for s in samples):
        return wilson(round(share * n), n)
    return max(0.0, share - half), min(1.0, share + half)


def error(samples: Sequence[Sample], metric: str) -> float:
    """The standard error of a metric's mean, from the spread over samples; 0 for one sample."""
    n, share = len(samples), mean(samples, metric)
    return sqrt(sum((s[metric] - share) ** 2 for s in samples) / max(1, n - 1) / n)


def passed(samples: Sequence[Sample], metric: str) -> dict[str, float]:
    """pass@k for some k up to the number of answers to a question: the chance that one of k is right."""
    right = [[score[metric] for score in s["scores"]] for s in samples]
    n, kind = len(right[0]), metric.partition(",")[2] or "none"
    if any(value not in (0, 1) for values in right for value in values):
        return {}
    return {
        f"pass@{k},{kind}": sum(pass_at_k(n, sum(values), k) for values in right) / len(right)
        for k in TRIES
        if k <= n and n > 1
    }


def counts(samples: Sequence[Sample]) -> dict[str, Any]:
    """Sums over all answers, and what `Totals` derives from them."""
    sums = {name: sum(s[name] for s in samples) for name in (*COUNTS, "empty")}
    answers = sum(len(s["resps"][0]) for s in samples)
    totals = Totals(answers, **{name: n for name, n in sums.items() if name not in ("canvas_tokens", "empty")})
    derived = {n: getattr(totals, n) for n in ("tokens_per_forward", "commit_width", "positions_per_token")}
    return {"answers": answers, **sums, "empty_share": sums["empty"] / answers, **derived}


def timing(samples: Sequence[Sample]) -> dict[str, Any]:
    """Seconds and rates. A run that was resumed adds up its sessions; ranks ran side by side, the slowest counts.

    Rates are those of `Totals`: of the engine's time, from the first step to the last, without loading, warm-up,
    tokenizing, scoring and writing; with many rows at once, each of which meets its prompt at some step, the decode
    rate rests on part of the steps. workers: the models that answered side by side in a rank, the most of any session.
    """
    last: dict[int, dict[str, dict[str, float]]] = defaultdict(dict)
    for s in samples:
        at = last[s["timing"]["rank"]].setdefault(s["timing"]["session"], dict.fromkeys(TOTALS, 0.0))
        for name in TOTALS:
            at[name] = max(at[name], s["timing"][name])
    totals = {name: [sum(at[name] for at in sessions.values()) for sessions in last.values()] for name in TOTALS}
    sums: dict[str, Any] = {n: sum(s["timing"][n] for s in samples) for n in ("decode_tokens", "first_seconds")}
    spent: dict[str, Any] = {name: max(totals[name]) for name in ("seconds", "decode_seconds", "draft_seconds")}
    answers, tokens = sum(len(s["resps"][0]) for s in samples), sum(s["generated_tokens"] for s in samples)
    found = Totals(answers=answers, generated_tokens=tokens, **sums, **spent)
    derived = ("tokens_per_second", "decode_tokens_per_second", "time_to_first_token", "draft_share")
    return {
        **spent,
        "forwards": int(sum(totals["forwards"])),
        "ranks": len(last),
        "workers": max(s["timing"]["workers"] for s in samples),
        "sessions": max(map(len, last.values())),
        **{name: getattr(found, name) for name in derived},
    }


def results(
    task: Task,
    method: Method | CausalMethod,
    samples: Sequence[Sample],
    conditions: Mapping[str, Any],
    *,
    n_questions: int,
    limit: int | None,
    date: str,
) -> dict[str, Any]:
    """The whole results file. Counts and conditions are ours; the other names are lm-evaluation-harness's."""
    name, model = task.name, str(conditions["model"])
    figures: dict[str, Any] = {"alias": name, "sample_len": len(samples)}
    for metric in task.metrics:
        short, _, kind = metric.partition(",")
        kind = kind or "none"
        figures[f"{short},{kind}"] = mean(samples, metric)
        figures[f"{short}_stderr,{kind}"] = error(samples, metric)
    figures |= passed(samples, task.metrics[0])
    settings = method.facts()
    config = {
        "task": name,
        "protocol": task.protocol,
        "num_fewshot": task.n_shots,
        "generation_kwargs": {"until": settings["stop"], "max_gen_toks": settings["gen_length"]},
        "metric_list": [{"metric": metric, "higher_is_better": True} for metric in task.metrics],
        "repeats": settings["num_samples"],
    }
    return {
        "results": {name: figures},
        "group_subtasks": {name: []},
        "configs": {name: config},
        "versions": {name: None},
        "n-shot": {name: task.n_shots},
        "higher_is_better": {name: {metric.partition(",")[0]: True for metric in task.metrics}},
        "n-samples": {name: {"original": n_questions, "effective": len(samples)}},
        "config": {
            "model": "dllm",
            "model_args": {"pretrained": model, "dtype": conditions["dtype"]},
            "batch_size": settings["batch_size"],
            "device": conditions["device"],
            "limit": limit,
            "gen_kwargs": settings,
            "random_seed": settings["seed"],
        },
        "git_hash": commit(),
        "transformers_version": conditions["versions"]["transformers"],
        "task_hashes": {name: digest("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples))},
        "model_source": "dllm",
        "model_name": model,
        "headline": task.metrics[0],
        "intervals": {metric: interval(samples, metric) for metric in task.metrics},
        "counts": counts(samples),
        "conditions": dict(conditions),
        "ids": [s["id"] for s in samples],
        "date": date,
        "timing": timing(samples),
    }


def commit() -> str | None:
    """The commit of the checkout that this package runs from, None where it is installed without one."""
    folder = Path(__file__).parent
    asked = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
