"""Models of lm-evaluation-harness that decode with this library: dllm, and the names of published command lines.

    python -m dllm.evaluate.lm_eval --model llada_dist --model_args model_path=...,gen_length=256 --tasks gsm8k

is the harness's own command line with these names known to it; in Python importing this module makes them known.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import MODEL_REGISTRY, register_model
from tqdm import tqdm

import dllm
from dllm.doctor import conditions
from dllm.errors import DllmError
from dllm.evaluate.answers import text_of
from dllm.evaluate.finished import Finished, key_of
from dllm.evaluate.jobs import Job, Reply, grouped, speed
from dllm.evaluate.likelihood import Pair, check, greedy, log_likelihoods
from dllm.evaluate.model_args import ALSO, DEFAULTS, asked, opened, read, wraps
from dllm.generation import token_ids

log = logging.getLogger(__name__)
CHUNK = 4
"""Batches of likelihoods that are finished together, which is the most that a kill loses."""


class DiffusionLM(LM):  # type: ignore[misc]  # the harness has no types
    """A masked diffusion language model for the harness; answers do not depend on the batch they are decoded in."""

    name: ClassVar[str] = "dllm"

    def __init__(self, **given: Any) -> None:
        """`given`: the harness's model_args; `dllm.evaluate.model_args` lists them. Raises DllmError as that does."""
        super().__init__()
        self._rank, self._world_size = joined()
        if self._world_size > 1 and given.get("device") in (None, "cuda", "cuda:0"):
            given["device"] = f"cuda:{os.environ.get('LOCAL_RANK', self._rank)}"
        self.args = read(self.name, given)
        self.model = opened(self.args)
        if (own := self.model.spec.block_length) and not any(ALSO.get(name, name) == "block_length" for name in given):
            self.args.settings["block_length"] = own
        self.tokenizer: Any = self.model.tokenizer
        self.templated = False
        """Whether the harness has put prompts through the chat template."""
        if self.args.ignored:
            log.warning("%s change nothing here", ", ".join(self.args.ignored))

    @property
    def device(self) -> torch.device:
        return self.model.device

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """One tensor of every process, stacked."""
        if self._world_size == 1:
            return tensor
        found = [torch.empty_like(tensor, device="cpu") for _ in range(self._world_size)]
        dist.all_gather(found, tensor.cpu())
        return torch.stack(found)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """One object of every process, on process dst; None on the others."""
        if self._world_size == 1:
            return [obj]
        found = [None] * self._world_size if self._rank == dst else None
        dist.gather_object(obj, found, dst)
        return found

    def barrier(self) -> None:
        if self._world_size > 1:
            dist.barrier()

    @property
    def tokenizer_name(self) -> str:
        return str(self.args.pretrained).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        return str(self.tokenizer.chat_template or "") if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if not self.tokenizer.chat_template:
            raise DllmError(f"{self.args.pretrained} has no chat template; leave out --apply_chat_template.")
        self.templated = True
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results beside the arguments."""
        used = {
            name: value if isinstance(value, int | float) else str(value) for name, value in self.args.settings.items()
        }
        return {"dllm": conditions(self.model, str(self.args.pretrained)) | {"settings": used}}

    def encode(self, text: str) -> list[int]:
        """A prompt as token ids, as the arguments want it: a user's turn, with a beginning of text, cut on the left."""
        if wraps(self.name, self.args, self.templated):
            ids = token_ids(self.model, text, chat=True)
        else:
            ids = list(self.tokenizer(text, add_special_tokens=not self.templated)["input_ids"])
        begin = self.tokenizer.bos_token_id
        if self.args.add_bos_token and begin is not None and ids[:1] != [begin]:
            ids = [begin, *ids]
        if self.args.max_prompt_len and len(ids) > self.args.max_prompt_len:
            log.warning("a prompt of %d tokens is cut to its last %d", len(ids), self.args.max_prompt_len)
            ids = ids[-self.args.max_prompt_len :]
        return ids

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Decode every request's whole canvas, then cut the text at the first of its stop strings."""
        jobs, new, spent = self.jobs(requests), list[Reply](), 0.0
        with (
            Finished(self.args.save_dir, f"rank_{self.rank}") as finished,
            bar(jobs, finished, disable_tqdm) as progress,
        ):
            for together in grouped([job for job in jobs if job.key not in finished.found]):
                before = spent
                for job, reply, seconds in self.replies(together):
                    finished.add(job.key, asdict(reply))
                    new.append(reply)
                    spent = before + seconds
                    progress.update()
            found = [Reply(**finished.found[job.key]) for job in jobs]
        if self.args.show_speed and (all_told := self.gather_object((new, spent, len(jobs)))):
            every, each_spent, asked_for = zip(*all_told, strict=True)
            whole = [*chain(*every)]
            print("\n".join(speed(whole, max(each_spent), sum(asked_for) - len(whole))), flush=True)
        for request, reply in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, reply.text)
        return [reply.text for reply in found]

    def jobs(self, requests: Sequence[Instance]) -> list[Job]:
        """The requests, each under a key that tells it from every other, and that it has in every run."""
        seen: Counter[str] = Counter()
        jobs = []
        for context, of_task in (request.args for request in requests):
            settings, until = asked(self.args.settings, of_task), of_task.get("until") or []
            until = [] if self.args.escape_until else [until] if isinstance(until, str) else list(until)
            prompt = self.encode(context)
            matters = {name: value for name, value in settings.items() if name != "batch_size"}
            key = key_of(str(self.args.pretrained), str(self.model.dtype), prompt, matters, until)
            jobs.append(Job(prompt, settings, until, key_of(key, seen[key])))
            seen[key] += 1  # the same question asked again draws other noise
        return jobs

    def replies(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Reply, float]]:
        """Decode jobs of equal settings together; each comes back once finished, with the engine's seconds so far."""
        names = [int(job.key[:15], 16) for job in jobs]
        run = dllm.stream(self.model, [job.prompt for job in jobs], chat=False, request_ids=names, **jobs[0].settings)
        told: set[int] = set()
        for _ in chain(run, [None]):  # the last rows are recorded when the run ends
            for index in sorted(run.schedule.finished.keys() - told):
                told.add(index)
                yield jobs[index], self.reply(jobs[index], run, index), run.accounts.seconds

    def reply(self, job: Job, run: dllm.Run, index: int) -> Reply:
        """What a run has decoded for one job."""
        text, n, generated = text_of(run, index, [*job.until, *run.settings.stop])
        return Reply(text, n, len(run.finished[index]), run.accounts.counts["nfe"][index], generated)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """LLaDA's Monte-Carlo estimate of each continuation's log-likelihood, and whether it is the greedy one."""
        args, scale = self.args, self.args.settings.get("cfg_scale", 0.0)
        settings = [str(args.pretrained), str(self.model.dtype), args.mc_num, scale, args.settings["seed"]]
        pairs = [self.pair(*request.args) for request in requests]
        jobs = [key_of("loglikelihood", *settings, args.is_check_greedy, asdict(pair)) for pair in pairs]
        with Finished(args.save_dir, f"rank_{self.rank}") as finished, bar(jobs, finished, disable_tqdm) as progress:
            new = {key: pair for key, pair in zip(jobs, pairs, strict=True) if key not in finished.found}
            for key, result in zip(new, self.likelihoods(list(new.values())), strict=True):
                finished.add(key, result)
                progress.update()
            found = [(float(value), bool(same)) for value, same in map(finished.found.__getitem__, jobs)]
        for request, result in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return found

    def likelihoods(self, pairs: Sequence[Pair]) -> Iterator[tuple[float, bool]]:
        """Each pair's log-likelihood, and whether it is the greedy one, some batches of them at a time."""
        args = self.args
        scale, size = args.settings.get("cfg_scale", 0.0), args.settings.get("batch_size", 16)
        check(self.model, pairs)
        for start in range(0, len(pairs), CHUNK * size):
            some = pairs[start : start + CHUNK * size]
            said = [False] * len(some)
            if args.is_check_greedy:
                said = greedy(self.model, some, cfg_scale=scale, batch_size=size)
            values = log_likelihoods(
                self.model, some, mc_num=args.mc_num, cfg_scale=scale, seed=args.settings["seed"], batch_size=size
            )
            yield from zip(values, said, strict=True)

    def pair(self, context: str, continuation: str) -> Pair:
        """Context and continuation as token ids, split where the context's own tokens end; spaces go to the right."""
        spaces = len(context) - len(context.rstrip())
        context, continuation = context[: len(context) - spaces], context[len(context) - spaces :] + continuation
        first, whole = (
            list(self.tokenizer(text, add_special_tokens=not self.templated)["input_ids"])
            for text in (context, context + continuation)
        )
        if not first and self.model.spec.logits_shift:  # nothing would predict the first token
            begin = self.tokenizer.bos_token_id
            first = [self.model.spec.eos_ids[0] if begin is None else begin]
            whole = first + whole
        return Pair(first, whole[len(first) :])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Refused: a masked diffusion model has no chain of next-token probabilities to roll along a document."""
        raise DllmError(
            "perplexity of documents (loglikelihood_rolling) is not defined for masked diffusion models; "
            "take a task that asks for generate_until or loglikelihood."
        )


def bar(jobs: Sequence[Any], finished: Finished, disable: bool) -> Any:
    """A progress bar on stderr that begins with what is finished already."""
    keys = [job.key if isinstance(job, Job) else job for job in jobs]
    return tqdm(total=len(jobs), initial=sum(key in finished.found for key in keys), disable=disable, desc="dllm")


def joined() -> tuple[int, int]:
    """This process's rank and how many there are, as torchrun and accelerate launch say, able to talk to each other."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank(), world_size


def register() -> None:
    """Make our names known to the harness; a name that it knows already stays what it is, with a warning."""
    for name in DEFAULTS:
        if name in MODEL_REGISTRY:
            log.warning("lm-eval has a model %r already, which stays; --model dllm is ours", name)
            continue
        register_model(name)(
            type(f"DiffusionLM_{name}", (DiffusionLM,), {"name": name, "__doc__": DiffusionLM.__doc__})
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The harness's command line; an error that the user can fix is one line on stderr, and code 2."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm_eval", *(sys.argv[1:] if argv is None else argv)]
    try:
        cli_evaluate()
    except DllmError as error:
        print("dllm: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


register()

if __name__ == "__main__":
    sys.exit(main())
