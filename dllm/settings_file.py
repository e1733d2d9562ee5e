"""Settings in a file, as `dllm tune` writes them and `dllm generate` and `dllm eval` take them."""

import json
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path
from typing import Any

import dllm.samplers
from dllm.errors import DllmError, unknown


def read(path: str, known: Collection[str]) -> dict[str, Any]:
    """The settings in a file, by the names of options: those under "settings", or all if there is no such name.

    Raises DllmError for a file that holds no settings, and for a setting that is not known.
    """
    try:
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        settings = found.get("settings", found)
        names = [*settings.keys()]
    except OSError as error:
        raise DllmError(f"--settings {path} cannot be read ({error.strerror}).") from error
    except (ValueError, AttributeError) as error:
        raise DllmError(f"--settings {path} is not a JSON object of settings, as dllm tune writes them.") from error
    for name in names:
        if name not in known:
            raise unknown(f"setting in {path}", name, known)
    return dict(settings)


def settle(options: Namespace, settings: dict[str, Any]) -> None:
    """Let options of a sampler that were given by name stand instead of those in the file's sampler."""
    given = [name for name in dllm.samplers.owners() if getattr(options, name) is not None]
    if given and options.sampler is not None and options.sampler == settings.get("sampler"):
        options.sampler = dllm.samplers.without(options.sampler, given)
