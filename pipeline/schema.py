"""Check plain data (parsed YAML) against a nested `msgspec.Struct`, and say what is wrong in words.

msgspec alone stops at the first fault and names neither the valid keys nor the range; a person who
mistyped three keys wants to read all three, with what would have been right.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

import msgspec
from msgspec import Struct
from msgspec.inspect import (
    BoolType,
    DictType,
    FloatType,
    IntType,
    LiteralType,
    StrType,
    Type,
    VarTupleType,
    type_info,
)

DERIVED = "derived"
"""Marks (in ``Meta.extra``) a field that the program fills in: it is no key of the file."""

SWITCHED = "switched"
"""Marks (in ``Meta.extra``) a text that may be ``off``, which YAML reads as false."""

OFF = "off"

LONGEST_VALUE_CHARS = 80
"""How much of a wrong value an error repeats."""


def faults(default: Struct, raw: Any, path: str = "") -> list[str]:
    """Everything that keeps ``raw`` from standing in for ``default``, one sentence each (empty: it can).

    None stands for an empty section, as YAML reads one whose keys are all commented out.
    """
    if raw is None:
        return []
    valid = names(type(default))
    if not isinstance(raw, Mapping):
        where = path or "the file"
        return [f"{where}: {show(raw)} stands where a section is expected, with {', '.join(valid)}"]
    found = []
    for key, value in raw.items():
        here = f"{path}.{key}" if path else str(key)
        if key not in valid:
            found.append(unknown(here, str(key), valid, path))
        elif isinstance(section := getattr(default, key), Struct):
            found += faults(section, value, here)
        else:
            found += _leaf_faults(default, key, _written(default, key, value), here)
    return found


def merged(default: Struct, raw: Any) -> dict[str, Any]:
    """``default`` with what ``raw`` says put over it, key by key, ready for `msgspec.convert`.

    Only after `faults` found none. Sections keep the defaults of their place, not of their type.
    """
    told = raw or {}
    tree: dict[str, Any] = {}
    for key in names(type(default)):
        value = getattr(default, key)
        if isinstance(value, Struct):
            tree[key] = merged(value, told.get(key))
        else:
            tree[key] = _written(default, key, told[key]) if key in told else msgspec.to_builtins(value)
    return tree


def names(kind: type[Struct]) -> tuple[str, ...]:
    """The keys of a section that a person may write, in their order."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(key for key in kind.__struct_fields__ if not _is_derived(hints[key]))


def unknown(path: str, name: str, valid: Iterable[str], where: str = "") -> str:
    """The sentence for a name that does not exist, with the nearest one that does."""
    valid = tuple(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"{path}: no such key{meant} Valid {f'in {where}' if where else 'sections'}: {', '.join(valid)}"


def show(value: Any) -> str:
    """A wrong value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE_CHARS else text[: LONGEST_VALUE_CHARS - 1] + "…"


def describe(kind: Type) -> str:
    """What a value of this type may be, in words."""
    match kind:
        case BoolType():
            return "true or false"
        case IntType() | FloatType():
            noun = "a whole number" if isinstance(kind, IntType) else "a number"
            return noun + _range(kind)
        case StrType():
            return "text (in quotes where it looks like something else)"
        case LiteralType():
            return "one of " + ", ".join(str(value) for value in kind.values)
        case VarTupleType():
            return f"a list, each {describe(kind.item_type)}"
        case DictType():
            return "key: value pairs"
    types = getattr(kind, "types", ())
    return " or ".join(describe(one) for one in types) if types else "something else"


def section_of(default: Struct, keys: Iterable[str]) -> Struct | None:
    """The section that a path of keys leads to (None: there is none)."""
    found: Any = default
    for key in keys:
        found = getattr(found, key, None) if key in names(type(found)) else None
        if not isinstance(found, Struct):
            return None
    return found  # type: ignore[no-any-return]


def is_text(section: Struct, key: str) -> bool:
    """Whether a key holds text and nothing but text."""
    return get_type_hints(type(section)).get(key) is str


def _is_derived(hint: Any) -> bool:
    return _is_marked(hint, DERIVED)


def _is_marked(hint: Any, mark: str) -> bool:
    metas = getattr(hint, "__metadata__", ())
    return any(isinstance(meta, msgspec.Meta) and (meta.extra or {}).get(mark) for meta in metas)


def _written(default: Struct, key: str, value: Any) -> Any:
    """The value as the person wrote it: ``off`` where YAML made false of it and the key takes that word."""
    hint = get_type_hints(type(default), include_extras=True)[key]
    return OFF if value is False and _is_marked(hint, SWITCHED) else value


def _range(kind: IntType | FloatType) -> str:
    low = f" of at least {kind.ge}" if kind.ge is not None else f" above {kind.gt}" if kind.gt is not None else ""
    if kind.le is None:
        return low
    return f" from {kind.ge} to {kind.le}" if kind.ge is not None else f"{low} up to {kind.le}"


def _leaf_faults(default: Struct, key: str, value: Any, path: str) -> list[str]:
    """What is wrong with one value; NaN and infinity are never right."""
    hint = get_type_hints(type(default), include_extras=True)[key]
    allowed = f"allowed: {describe(type_info(hint))}{_default(getattr(default, key))}"
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        wrong = str(error).partition(" - at ")[2].strip("`$")
        return [f"{path}{wrong}: {show(value)} is not allowed; {allowed}"]
    if any(isinstance(number, float) and not math.isfinite(number) for number in _numbers(value)):
        return [f"{path}: {show(value)} is not a finite number; {allowed}"]
    return []


def _numbers(value: Any) -> Iterable[Any]:
    """The values inside a leaf."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else (value,)


def _default(value: Any) -> str:
    """What a key holds when nothing is said, where that is worth saying."""
    return "" if value in ((), {}, "") else f" (default {value})"
