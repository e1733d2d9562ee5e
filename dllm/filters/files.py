"""Files that are either whole or not there."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes
from torch import Tensor


def save(path: Path, tensors: Mapping[str, Tensor], **about: Any) -> None:
    """Write or replace a safetensors file; `about` becomes its metadata, each value as JSON has it.

    With at most one of these the bytes depend on the contents alone: several would come in any order.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {name: json.dumps(value) for name, value in about.items()}
    replace_bytes(path, to_bytes(whole, metadata or None))


def replace_bytes(path: Path, content: bytes) -> None:
    """Write or replace a file at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
