"""Samplers and caches as users write them: "threshold:threshold=0.8" is Threshold(threshold=0.8)."""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from math import isfinite
from typing import Any, TypeVar

from dllm.errors import DllmError, unknown

T = TypeVar("T")


def make(kind: str, registry: Mapping[str, type[T]], aliases: Mapping[str, str], name: str, /, **options: Any) -> T:
    """Build what `name` stands for, a name or "name:option=value,option=value", with further options."""
    if not isinstance(name, str):
        raise DllmError(f"{name!r} is no name of a {kind}; there are: {', '.join(registry)}.")
    name, _, text = name.partition(":")
    name = aliases.get(name, name)
    if name not in registry:
        raise unknown(kind, name, [*registry, *aliases])
    made = registry[name]
    hints = typing.get_type_hints(made)
    known = {f.name: hints[f.name] for f in fields(made)}  # type: ignore[arg-type]  # all registered are dataclasses
    chosen = read(kind, name, text, options, known)
    for f in fields(made):  # type: ignore[arg-type]  # the same
        if f.default is MISSING and f.default_factory is MISSING and f.name not in chosen:
            raise DllmError(f"the {kind} {name} needs {f.name}; give it as {name}:{f.name}=...")
    return made(**chosen)


def read(kind: str, name: str, text: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The options "option=value,option=value" behind a name, and those given otherwise, as the known ones' types."""
    options = dict(given)
    for item in filter(None, text.split(",")):
        option, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise DllmError(f"{item!r} in {name}:{text} is not option=value.")
        if option in options:
            raise DllmError(
                f"{option} of {kind} {name} is given twice, as {options[option]!r} and {value!r}; give it once."
            )
        options[option] = value
    for option in options:
        if option not in known:
            raise unknown(f"option of {kind} {name}", option, known)
    return {option: convert(f"{name}:{option}", value, known[option]) for option, value in options.items()}


def parts(method: Any, registry: Mapping[str, type]) -> dict[str, Any]:
    """A sampler or cache as its name and options; a sampler that it applies likewise."""
    name = next((name for name, made in registry.items() if type(method) is made), type(method).__name__)
    values = {field.name: getattr(method, field.name) for field in fields(method)}
    nested = {n: parts(v, registry) if type(v) in registry.values() else printable(v) for n, v in values.items()}
    return {"name": name, **nested}


def printable(value: Any) -> Any:
    """A value as JSON has it: an infinite number and an object as text."""
    if isinstance(value, tuple):
        return [printable(part) for part in value]
    plain = isinstance(value, str | int | None) or (isinstance(value, float) and isfinite(value))
    return value if plain else str(value)


def convert(option: str, value: Any, hint: Any) -> Any:
    """A value as its dataclass field wants it; text from a command line is read, numbers are checked."""
    if hint is Any:
        return value
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        if type(None) in kinds:
            return None
        raise DllmError(f"{option} needs a value of type {_name(hint)}; got none.")
    if isinstance(value, str) and typing.get_origin(hint) is Sequence:  # a comma would end the option
        return tuple(convert(option, part, typing.get_args(hint)[0]) for part in value.split("/"))
    if isinstance(value, str) and bool in kinds and value.lower() in ("true", "false", "1", "0", "yes", "no"):
        return value.lower() in ("true", "1", "yes")
    for kind in kinds:
        if isinstance(value, bool) != (kind is bool) or kind not in (int, float, str, bool):
            continue
        try:
            converted = kind(value)
        except (TypeError, ValueError, OverflowError):
            continue
        if kind is str or isinstance(value, str) or converted == value or value != value:
            return converted
    if not any(k in (int, float, str, bool) for k in kinds):
        return value
    raise DllmError(f"{option}={value} is not of type {_name(hint)}.")


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("NoneType", "None")
