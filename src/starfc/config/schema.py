"""Build nested dataclasses from nested mappings, and report all problems in one error.

The annotation of a field is its type. :func:`option` adds the rule (choices or bounds) and the meaning as metadata.
"""

from __future__ import annotations

import difflib
import re
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
    """Return a dataclass field with a rule: the value is one of ``choices``, or within [``low``, ``high``].

    ``former`` maps earlier names of choices, which are still accepted, to the present ones.
    """
    rule = {"help": help, "choices": choices, "low": low, "high": high, "former": former or {}}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=rule)
    return field(default=default, metadata=rule)


def build(cls: type, given: Mapping[str, Any], retired: Mapping[str, str] | None = None, source: str = "") -> Any:
    """Build an object of the dataclass ``cls`` from ``given``.

    Parameters
    ----------
    cls : type
        The dataclass.
    given : mapping
        Values by name; nested mappings for nested dataclasses.
    retired : mapping
        Dotted names that are no longer options, with advice for the user.
    source : str
        The file that the values are from, for the message.

    Raises
    ------
    InputError
        Its message lists every unknown key (with the nearest known one), wrong type, broken rule and contradiction.
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


def size_in_bytes(text: str | None) -> int | None:
    """Return a size such as '16GB' in bytes; None for None. Raise ValueError with the rule if it is no size."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MGT])i?B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"must be a number with MB, GB or TB, such as '16GB'; found {text!r}")
    return int(float(match[1]) * 1024 ** {"M": 2, "G": 3, "T": 4}[match[2].upper()])


def merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings. Values of ``given`` override those of ``base``."""
    both = dict(base)
    for key, value in given.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of dotted keys as nested mappings."""
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
        f"{word(prefix + key)}: is missing; {known[key].metadata.get('help', 'it has no default')}" for key in missing
    ]
    if missing or any(k not in values for k in given if k in known) or any(v is MISSING for v in values.values()):
        return None
    return cls(**values)


def _unknown(keys: list[str], prefix: str, known: Mapping[str, Any], retired: Mapping[str, str]) -> list[str]:
    """Return the problems of unknown keys. The known keys are listed only once."""
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
        found.append(f"{', '.join(strange)}: {what}; the known keys are {', '.join(known)}")
    return found


def _checked(value: Any, hint: Any, rule: Mapping[str, Any], dotted: str, problems: list[str]) -> Any:
    if not _matches(value, hint):
        problems.append(f"{word(dotted)}: must be {_spell(hint)}; found {value!r} ({type(value).__name__})")
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
                f"{word(dotted)}: must be one of {', '.join(map(repr, rule['choices']))}; found {item!r}{hint_text}"
            )
        low, high = rule.get("low"), rule.get("high")
        # "not (inside)" instead of "outside", so that NaN breaks the rule
        if (low is not None and not item >= low) or (high is not None and not item <= high):
            bounds = (
                f"at least {low}"
                if high is None
                else f"between {low} and {high}"
                if low is not None
                else f"at most {high}"
            )
            problems.append(f"{word(dotted)}: must be {bounds}; found {item!r}")
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
