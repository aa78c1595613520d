"""Nested mappings -> nested dataclasses, with every problem reported at once.

A field's annotation is its type; ``metadata`` of :func:`option` gives the rule (choices, bounds) and the meaning.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any

from starfc.errors import InputError
from starfc.runtime.words import word


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    former: Mapping[str, str] | None = None,
    factory: Any = MISSING,
) -> Any:
    """A dataclass field with its rule: one of ``choices``, or within [``low``, ``high``].

    ``former`` are earlier names of choices, which are taken for what they are called now.
    """
    rule = {"help": help, "choices": choices, "low": low, "high": high, "former": former or {}}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=rule)
    return field(default=default, metadata=rule)


def build(cls: type, given: Mapping[str, Any], retired: Mapping[str, str] | None = None, source: str = "") -> Any:
    """Make ``cls`` from ``given``.

    Parameters
    ----------
    retired : mapping
        Dotted names that are no longer options, with what to do instead.
    source : str
        File, for the message.

    Raises
    ------
    InputError
        Lists every unknown key (with the nearest known one), wrong type, broken rule and contradiction.
    """
    problems: list[str] = []
    value = _build(cls, given, "", problems, retired or {})
    if not problems:
        problems += [f"{word(key)}: {wrong}" for key, wrong in getattr(value, "contradictions", list)()]
    if problems:
        where = f"{source}: " if source else ""
        listed = problems[0] if len(problems) == 1 else f"{len(problems)} problems\n  - " + "\n  - ".join(problems)
        raise InputError(where + listed)
    return value


def merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, ``given`` before ``base``."""
    both = dict(base)
    for key, value in given.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Values of dotted keys as nested mappings."""
    whole: dict[str, Any] = {}
    for key, value in dotted.items():
        for name in reversed(key.split(".")):
            value = {name: value}
        whole = merged(whole, value)
    return whole


def _build(cls: type, given: Mapping[str, Any], prefix: str, problems: list[str], retired: Mapping[str, str]) -> Any:
    known = {f.name: f for f in fields(cls)}
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    problems += _unknown([key for key in given if key not in known], prefix, known, retired)
    for key, value in given.items():
        dotted = f"{prefix}{key}"
        if key not in known:
            continue
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            values[key] = _build(hints[key], value, f"{dotted}.", problems, retired)
        else:
            values[key] = _checked(value, hints[key], known[key].metadata, dotted, problems)
    missing = [k for k, f in known.items() if k not in given and f.default is MISSING and f.default_factory is MISSING]
    problems += [
        f"{word(prefix + key)}: missing; {known[key].metadata.get('help', 'it has no default')}" for key in missing
    ]
    if missing or any(k not in values for k in given if k in known) or any(v is MISSING for v in values.values()):
        return None
    return cls(**values)


def _unknown(keys: list[str], prefix: str, known: Mapping[str, Any], retired: Mapping[str, str]) -> list[str]:
    """What is wrong with keys that are not known; those that are known are listed once."""
    found, strange = [], []
    for key in keys:
        dotted, nearest = f"{prefix}{key}", difflib.get_close_matches(key, known, n=1)
        if dotted in retired:
            found.append(f"{word(dotted)}: {retired[dotted]}")
        elif nearest:
            found.append(f"{word(dotted)}: unknown key; did you mean {nearest[0]}?")
        else:
            strange.append(word(dotted))
    if strange:
        what = "unknown key" if len(strange) == 1 else "unknown keys"
        found.append(f"{', '.join(strange)}: {what}; known here: {', '.join(known)}")
    return found


def _checked(value: Any, hint: Any, rule: Mapping[str, Any], dotted: str, problems: list[str]) -> Any:
    if not _matches(value, hint):
        problems.append(f"{word(dotted)}: {_spell(hint)} needed; found {value!r} ({type(value).__name__})")
        return MISSING
    if isinstance(value, int) and not isinstance(value, bool) and float in _members(hint) and int not in _members(hint):
        value = float(value)
    if value is None:
        return None
    if isinstance(value, str):
        value = rule.get("former", {}).get(value, value)
    for item in value if isinstance(value, list | tuple) else [value]:
        if rule.get("choices") and item not in rule["choices"]:
            near = difflib.get_close_matches(str(item), rule["choices"], n=1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(
                f"{word(dotted)}: one of {', '.join(map(repr, rule['choices']))} needed; found {item!r}{hint_text}"
            )
        low, high = rule.get("low"), rule.get("high")
        # written as "not (inside)" so that NaN is outside
        if (low is not None and not item >= low) or (high is not None and not item <= high):
            bounds = (
                f"at least {low}"
                if high is None
                else f"between {low} and {high}"
                if low is not None
                else f"at most {high}"
            )
            problems.append(f"{word(dotted)}: {bounds} needed; found {item!r}")
    return list(value) if isinstance(value, list | tuple) else value


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _matches(value: Any, hint: Any) -> bool:
    for member in _members(hint):
        origin = typing.get_origin(member) or member
        if origin is list:
            (item,) = typing.get_args(member)
            if isinstance(value, list | tuple) and all(_matches(v, item) for v in value):
                return True
        elif origin is dict:
            if isinstance(value, Mapping):
                return True
        elif origin is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return True
        elif origin is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return True
        elif isinstance(value, origin):
            return True
    return False


def _spell(hint: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "True or False", type(None): "None"}
    spelled = []
    for member in _members(hint):
        if typing.get_origin(member) is list:
            spelled.append(f"a list of {_spell(typing.get_args(member)[0])}")
        elif is_dataclass(member) or typing.get_origin(member) is dict:
            spelled.append("a dict")
        else:
            spelled.append(names.get(member, str(member)))
    return " or ".join(spelled)
