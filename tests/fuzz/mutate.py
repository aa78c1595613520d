"""Damage files as transfers, disks and hostile people do."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**63 - 1)
_HEAD = 512  # bytes in which most formats say what follows


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """A damaged copy of ``data``: one to six of the kinds below, one after the other."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        kind = rng.choice(_KINDS)
        kind(rng, out, others, tokens)
    return bytes(out)


def _place(rng: random.Random, data: bytearray) -> int:
    """A place, half of the time near the beginning or the end, where headers and directories are."""
    size = max(len(data), 1)
    if rng.random() < 0.5:
        near = rng.randrange(min(_HEAD, size))
        return near if rng.random() < 0.6 else size - 1 - near
    return rng.randrange(size)


def _flip(rng: random.Random, data: bytearray, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    if data:
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _byte(rng: random.Random, data: bytearray, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    if data:
        data[_place(rng, data)] = rng.randrange(256)


def _number(rng: random.Random, data: bytearray, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    """A length field, perhaps."""
    width, value, at = rng.choice((1, 2, 4, 8)), rng.choice(_NUMBERS), _place(rng, data)
    value = (value + rng.choice((-1, 0, 0, 1))) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, rng.choice(("little", "little", "big")))


def _cut(rng: random.Random, data: bytearray, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    del data[_place(rng, data) :]


def _remove(rng: random.Random, data: bytearray, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    at = _place(rng, data)
    del data[at : at + rng.choice((1, 2, 4, 16, 64))]


def _repeat(rng: random.Random, data: bytearray, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    at, count = _place(rng, data), rng.choice((1, 4, 16, 64))
    data[at:at] = data[at : at + count] * rng.choice((1, 2, 50))


def _splice(rng: random.Random, data: bytearray, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    """A part of another file."""
    other = rng.choice(others)
    start = rng.randrange(max(len(other), 1))
    part, at = other[start : start + rng.choice((4, 16, 64, 256))], _place(rng, data)
    data[at : at + rng.choice((0, len(part)))] = part


def _token(rng: random.Random, data: bytearray, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    token, at = rng.choice(tokens), _place(rng, data)
    data[at : at + rng.choice((0, len(token)))] = token


def _edit(rng: random.Random, data: bytearray, others: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    """A token of the format that is there becomes another one."""
    there = [token for token in tokens if token in data]
    if there:
        old = rng.choice(there)
        at = data.find(old)
        data[at : at + len(old)] = rng.choice(tokens)


_KINDS: tuple[Callable[[random.Random, bytearray, Sequence[bytes], Sequence[bytes]], None], ...] = (
    _flip, _flip, _byte, _number, _number, _cut, _remove, _repeat, _splice, _token, _edit,
)  # fmt: skip
