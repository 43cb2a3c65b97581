"""Cursors: which rows a replay is of, and behind which of them it goes on.

The pin is not a snapshot but the next offsets of all sources: a row of K2's tables never changes
and is never taken out, so the rows below these offsets are the same in every later snapshot,
whatever has expired. A cursor is a text of two parts, `PIN.POSITION`, base64url each. The pin is
constant over the records of a replay, so a column of cursors is made from numbers by numpy.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2.errors import BadQuery
from k2.lake.offsets import Source

__all__ = ["START", "Cursor", "Pin", "Position", "cursors", "parse"]

Int64s = npt.NDArray[np.int64]

_VERSION = 1
_SUM_BYTES = 4
_NAME_BYTES = 5
_POSITION = struct.Struct(">qqHHI")
_TEXT_BYTES = _POSITION.size // 3 * 4
_FACTORS = tuple(np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))
SOURCES_MAX = 65_535


class Position(NamedTuple):
    """Behind which record of a pin's order a replay goes on.

    ts_event: ns. In what is live it says nothing: `offset` of `source` is the last one that was
        sent, of every other source it is the one before the pin's.
    source: number of the record's source in `Pin.sources`.
    rank: 0 for a trade or a quote; findings of the gap ledger stand behind one, from 1 on.
    """

    ts_event: int
    offset: int
    source: int
    rank: int


#: Before every record.
START = Position(-(2**63), -1, 0, 0)


@dataclass(frozen=True)
class Pin:
    """The rows below the next offset of each source; no others belong to a replay.

    live: all of them have been sent, and it goes on with what is not below the offsets.
    seen: by kind of record the sequence number of a snapshot that has these rows and no others, or
        fewer: what later ones add lies behind. Only spares looking into older files.
    """

    following: Mapping[Source, int]
    seen: tuple[int, ...]
    live: bool = False
    sources: tuple[Source, ...] = field(init=False)
    text: str = field(init=False)

    def __post_init__(self) -> None:
        order = sorted(self.following, key=lambda s: (s.topic, s.partition, s.cluster))
        if len(order) > SOURCES_MAX:
            raise BadQuery("cursor", f"{len(order)} partitions: more than {SOURCES_MAX}")
        object.__setattr__(self, "sources", tuple(order))
        object.__setattr__(self, "text", self._encode())

    def cursor(self, position: Position) -> str:
        """The cursor of one position."""
        ts, offset, source, rank = (np.array([value], np.int64) for value in position)
        (text,) = cursors(self, ts, offset, source, rank).to_pylist()
        return str(text)

    def _encode(self) -> str:
        out = bytearray([_VERSION, self.live, len(self.seen)])
        for number in self.seen:
            out += _varint(number)
        for (cluster, topic), group in groupby(sorted(self.following), key=lambda s: s[:2]):
            of = list(group)
            out += _name(cluster, topic) + _varint(len(of))
            for source in of:
                out += _varint(source.partition) + _varint(self.following[source])
        return base64.urlsafe_b64encode(out + _sum(out)).decode().rstrip("=")


class Cursor(NamedTuple):
    """What a cursor says."""

    pin: Pin
    position: Position


def cursors(
    pin: Pin, ts_event: Int64s, offset: Int64s, source: npt.NDArray[Any], rank: npt.NDArray[Any]
) -> pa.Array:
    """The cursors of n records of a pin: strings."""
    count = len(ts_event)
    made = np.empty(
        count,
        [("ts", ">i8"), ("offset", ">i8"), ("source", ">u2"), ("rank", ">u2"), ("sum", ">u4")],
    )
    made["ts"], made["offset"], made["source"], made["rank"] = ts_event, offset, source, rank
    made["sum"] = _check(pin, ts_event, offset, source, rank)
    prefix = pin.text.encode() + b"."
    wide = len(prefix) + _TEXT_BYTES
    text = np.empty((count, wide), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
    encoded = base64.urlsafe_b64encode(made.tobytes())
    text[:, len(prefix) :] = np.frombuffer(encoded, np.uint8).reshape(count, _TEXT_BYTES)
    offsets = np.arange(0, (count + 1) * wide, wide, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))


def parse(text: str, known: Iterable[Source]) -> Cursor:
    """Read a cursor.

    Args:
        known: the sources of the lake, now.

    Raises:
        BadQuery: it is none, was altered, or is of another lake.
    """
    first, _, second = text.partition(".")
    body, position = _decoded(first), _decoded(second)
    if len(body) < _SUM_BYTES + 3 or len(position) != _POSITION.size:
        raise BadQuery("cursor", "it is not one of K2, or not whole")
    body, found = body[:-_SUM_BYTES], body[-_SUM_BYTES:]
    if found != _sum(body) or body[0] != _VERSION:
        raise BadQuery("cursor", "it is not one of this version of K2, or was altered")
    names = {_name(source.cluster, source.topic): source[:2] for source in known}
    try:
        pin = _pin(body, names)
    except IndexError as exc:
        raise BadQuery("cursor", "it is not whole") from exc
    *values, check = _POSITION.unpack(position)
    at = Position(*values)
    arrays = [np.array([value], np.int64) for value in at]
    if check != int(_check(pin, *arrays)[0]) or (at.source and at.source >= len(pin.sources)):
        raise BadQuery("cursor", "it was altered")
    return Cursor(pin, at)


def _pin(body: bytes, names: Mapping[bytes, tuple[str, str]]) -> Pin:
    live, at = bool(body[1]), 3
    seen = []
    for _ in range(body[2]):
        number, at = _read(body, at)
        seen.append(number)
    following = {}
    while at < len(body):
        name = names.get(body[at : at + _NAME_BYTES])
        if name is None:
            raise BadQuery("cursor", "it is of topics that this lake does not know")
        count, at = _read(body, at + _NAME_BYTES)
        for _ in range(count):
            partition, at = _read(body, at)
            following[Source(*name, partition)], at = _read(body, at)
    return Pin(following, tuple(seen), live)


def _check(pin: Pin, *columns: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """32 bits of each position, and of the pin: an altered one, or one of another pin, is seen."""
    ts, offset, source, rank = (column.astype(np.int64).view(np.uint64) for column in columns)
    salt = np.uint64(int.from_bytes(blake2b(pin.text.encode(), digest_size=8).digest(), "big"))
    mixed = ts * _FACTORS[0] ^ offset * _FACTORS[1] ^ (source << np.uint64(16) | rank) ^ salt
    mixed = (mixed ^ mixed >> np.uint64(29)) * _FACTORS[2]
    checks: npt.NDArray[np.uint64] = mixed >> np.uint64(32)
    return checks


def _decoded(text: str) -> bytes:
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise BadQuery("cursor", "it is not one of K2") from exc


def _name(cluster: str, topic: str) -> bytes:
    """A short name of a topic of a cluster; the whole one would be in every record."""
    return blake2b(f"{cluster}\0{topic}".encode(), digest_size=_NAME_BYTES).digest()


def _sum(body: bytes | bytearray) -> bytes:
    return blake2b(body, digest_size=_SUM_BYTES).digest()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _read(body: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while body[at] & 0x80:
        number |= (body[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return number | body[at] << shift, at + 1
