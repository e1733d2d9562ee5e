"""Collect traces: answer prompts one token a step, then again with the oracle, and keep what it saw.

FOLDER/collection.json          what the traces depend on; another collection does not go on in the same folder
FOLDER/traces-00000.safetensors the steps of a shard of prompts; whole, or not there

A shard depends on its own prompts alone: however often a collection is killed, and by however many processes it is
made, the files are the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import sleep
from typing import Any

import torch
from torch import Tensor

import dllm
import dllm.cache
from dllm.api import check_model, start
from dllm.cache.base import Cache
from dllm.errors import DllmError
from dllm.evaluate.store import differing, dump, replace_file
from dllm.filters.files import save
from dllm.filters.oracle import Oracle, Seen
from dllm.fingerprint import fingerprint
from dllm.generation import Generation, Prompt, Request, requests
from dllm.options import parts
from dllm.samplers import Static
from dllm.samplers.base import Sampler
from dllm.samplers.features import FEATURES
from dllm.settings import Settings
from dllm.spec import Model
from dllm.verify import finished
from dllm.weights import read_json

SHARD = 64
"""Prompts of a shard."""
POLL = 1.0
"""Seconds between two looks for other ranks' shards."""
Tell = Callable[[int, int], None]
"""Told how many of all prompts are done."""


@dataclass(frozen=True)
class Decoding:
    """What the answers depend on besides model, prompts and sampler."""

    cache: Cache
    settings: Settings

    @classmethod
    def of(cls, cache: str = "none", gen_length: int = 256, block_length: int = 32, batch_size: int = 16) -> "Decoding":
        """Greedy decoding. Raises DllmError for values that cannot be."""
        made = Settings(gen_length=gen_length, block_length=block_length, batch_size=batch_size, seed=0)
        return cls(dllm.cache.make(cache), made)

    @property
    def block_length(self) -> int:
        return self.settings.block_length or 32

    def facts(self) -> dict[str, Any]:
        cache = parts(self.cache, dllm.cache.CACHES)
        return {"cache": cache, "gen_length": self.settings.gen_length, "block_length": self.block_length}

    def run(self, model: Model, asked: Sequence[Request], sampler: Sampler) -> Generation:
        return finished(start(model, asked, sampler, self.cache, self.settings, (), None))


def asked_of(model: Model, prompts: Sequence[Prompt], decoding: Decoding) -> list[Request]:
    """A request for each prompt, named by its place. Raises DllmError for a model or a prompt that cannot be."""
    check_model(model)
    masks = [decoding.settings.mask(model.spec)] * decoding.settings.gen_length
    return requests(model, list(prompts), masks, chat=True, repeats=1, request_ids=range(len(prompts)))


@dataclass(frozen=True)
class Collection:
    """The shards of some prompts in a folder."""

    model: Model
    asked: Sequence[Request]
    decoding: Decoding
    folder: Path
    shard: int = SHARD

    @property
    def paths(self) -> list[Path]:
        n = -(-len(self.asked) // self.shard)
        return [self.folder / f"traces-{i:05}.safetensors" for i in range(n)]

    def facts(self) -> dict[str, Any]:
        """All that the traces depend on."""
        prompts = sha256(dump([request.prompt for request in self.asked]).encode()).hexdigest()[:16]
        own = {"prompts": prompts, "n": len(self.asked), "shard": self.shard, "features": [*FEATURES]}
        where = {"weights": fingerprint(self.model), "dtype": str(self.model.dtype), "device": self.model.device.type}
        return where | own | self.decoding.facts() | {"dllm": dllm.__version__}

    def begin(self) -> None:
        """Go on with what is in the folder, or begin. Raises DllmError if something else is there."""
        head, facts = self.folder / "collection.json", self.facts()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not head.exists():
                replace_file(head, dump(facts, 1))
        except OSError as error:
            raise DllmError(f"{self.folder} cannot be written to ({error.strerror}); give another folder.") from error
        if (found := read_json(head)) != facts:
            then, now = differing(found, facts)
            raise DllmError(f"{self.folder} holds traces with {then}, and these have {now}; give another folder.")

    def make(self, rank: int = 0, world_size: int = 1, tell: Tell = lambda _n, _of: None) -> None:
        """Collect this rank's shards that are not there yet; rank 0 returns when those of all ranks are."""
        self.begin()
        for place, path in list(enumerate(self.paths))[rank::world_size]:
            if not path.exists():
                tell(self.done, len(self.asked))
                save(path, self.traces(range(len(self.asked))[place * self.shard : (place + 1) * self.shard]))
        while rank == 0 and not all(path.exists() for path in self.paths):
            tell(self.done, len(self.asked))
            sleep(POLL)
        tell(self.done, len(self.asked))

    @property
    def done(self) -> int:
        """Prompts whose shard is there."""
        return min(len(self.asked), self.shard * sum(path.exists() for path in self.paths))

    def traces(self, which: range) -> dict[str, Tensor]:
        """What the oracle saw on these prompts, in the order of prompt and step, and their answers."""
        asked, told = self.asked[which.start : which.stop], list[Seen]()
        plain = self.decoding.run(self.model, asked, Static())
        knowing = Oracle.of(asked, plain.completions, self.decoding.block_length, self.model.device, told.append)
        made = self.decoding.run(self.model, asked, knowing)
        request = torch.cat([s.request for s in told]).cpu()
        by = torch.cat([s.step for s in told]).cpu()
        sort = (request * (int(by.max()) + 1) + by).argsort()
        steps = {name: torch.cat([getattr(s, name) for s in told]).cpu()[sort] for name in ("right", "masked")}
        return steps | {
            "features": torch.cat([s.features for s in told]).cpu()[sort].float(),
            "prompt": which.start + request[sort],
            "answer": torch.tensor(plain.completions),
            "answer_tokens": plain.answer_tokens,
            "nfe": plain.nfe,
            "oracle_nfe": made.nfe,
        }
