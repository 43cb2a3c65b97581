"""Trades and quotes as bytes, good and spoiled, written part by part and not by any library."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from random import Random
from typing import Any

from k2.schemas import QUOTES, TRADES, Kind

__all__ = ["SCHEMAS", "UNKNOWN_ID", "framed", "overlong", "spoiled", "valid", "varint", "write"]


def _evolved(kind: Kind, name: str, **change: Any) -> dict[str, Any]:
    schema = copy.deepcopy(kind.avro)
    (found,) = (each for each in schema["fields"] if each["name"] == name)
    found.pop("default", None)
    found.update(change)
    return schema


def _added(kind: Kind) -> dict[str, Any]:
    schema = copy.deepcopy(kind.avro)
    schema["fields"].insert(3, {"name": "desk", "type": ["null", "long"], "default": None})
    return schema


def _reordered(kind: Kind) -> dict[str, Any]:
    schema = copy.deepcopy(kind.avro)
    fields = schema["fields"]
    fields[0], fields[1], fields[5], fields[6] = fields[1], fields[0], fields[6], fields[5]
    return schema


_SIDE = {"type": "enum", "name": "Side", "symbols": ["SELL", "CROSS", "BUY", "NONE"]}
_DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 8}


def _schemas(kind: Kind, changed: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    common = [
        _added(kind),
        _reordered(kind),
        _evolved(kind, "sequence", type="int"),
        _evolved(kind, "venue", type="string"),
    ]
    others = dict(enumerate([*common, *changed], start=20))
    return {**dict.fromkeys(SAME_LAYOUT, kind.avro), **others}


#: Some ids are, as the bytes of a float, not a number or infinite.
SAME_LAYOUT = (0, 1, 0x0000807F, 0x0100A0FF, 0xFFFFFFFF)

#: Writer schemas by id.
SCHEMAS: dict[Kind, dict[int, dict[str, Any]]] = {
    TRADES: _schemas(
        TRADES,
        [
            _evolved(TRADES, "trade_id", type=["string", "null"]),
            _evolved(TRADES, "side", type=_SIDE),  # CROSS is not known to the reader
        ],
    ),
    QUOTES: _schemas(
        QUOTES,
        [
            _evolved(QUOTES, "bid_price", type=[_DECIMAL, "null"]),
            _evolved(QUOTES, "ask_size", type=_DECIMAL),
        ],
    ),
}
UNKNOWN_ID = 4711


@dataclass(frozen=True, slots=True)
class Piece:
    """An integer (kind: long, enum, branch), or bytes behind their length (text, amount)."""

    kind: str
    number: int
    data: bytes = b""


def varint(number: int) -> bytes:
    """Shortest zig-zag encoding; any size of integer."""
    bits = -2 * number - 1 if number < 0 else 2 * number
    out = []
    while True:
        bits, low = divmod(bits, 128)
        out.append(low | (128 if bits else 0))
        if not bits:
            return bytes(out)


def overlong(number: int, extra: int) -> bytes:
    """The same number in `extra` bytes more than it needs."""
    short = bytearray(varint(number))
    short[-1] |= 128
    return bytes(short) + b"\x80" * (extra - 1) + b"\x00"


def write(pieces: list[Piece], swapped: int = -1, head: bytes = b"") -> bytes:
    """Encode pieces; the integer of the piece number `swapped` is `head` instead."""
    return b"".join(
        (head if i == swapped else varint(piece.number)) + piece.data
        for i, piece in enumerate(pieces)
    )


def framed(schema_id: int, datum: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + datum


_TEXT_SIZES = (0, 1, 3, 5, 8, 8, 12, 20, 63, 64, 65, 130)
_ALPHABETS = ("ABCXYZ019.-", "aé€😀 \x00", "\x7f\x80ࠀ𐀀\U0010ffff", " /\\'\"\n\t")


def _text(rng: Random, wild: bool) -> bytes:
    text = "".join(rng.choices(rng.choice(_ALPHABETS), k=rng.choice(_TEXT_SIZES)))
    if wild and rng.random() < 0.1:
        text *= rng.choice((100, 1000))
    return text.encode()


def _long(rng: Random, bits_max: int) -> int:
    if rng.random() < 0.1:
        edge = rng.choice((0, 1 << rng.randrange(bits_max)))
        number = edge + rng.choice((-1, 0, 1)) if edge else 0
    else:
        number = rng.getrandbits(rng.randrange(1, bits_max + 1))
    number = min(number, (1 << bits_max) - 1)
    return rng.choice((number, -number, -number - 1))


def signed(number: int, size: int) -> bytes:
    return number.to_bytes(size, "big", signed=True)


def _amount(rng: Random) -> bytes:
    number = rng.choice((0, 1, 10**18 - 1, 10**8, rng.randrange(10 ** rng.randrange(1, 19))))
    number *= rng.choice((1, 1, -1))
    size = number.bit_length() // 8 + 1
    if rng.random() < 0.1:
        size = rng.randrange(size, 9)  # sign extended
    return signed(number, size)


def _pieces(rng: Random, avro: Any, wild: bool) -> list[Piece]:
    if isinstance(avro, list):
        branch = rng.randrange(len(avro))
        return [Piece("branch", branch), *_pieces(rng, avro[branch], wild)]
    kind = avro["type"] if isinstance(avro, dict) else avro
    match kind:
        case "null":
            return []
        case "enum":
            return [Piece("enum", rng.randrange(len(avro["symbols"])))]
        case "int":
            return [Piece("long", _long(rng, 31))]
        case "long":
            return [Piece("long", _long(rng, 63 if wild else 61))]
    data = _text(rng, wild) if kind == "string" else _amount(rng)
    return [Piece("text" if kind == "string" else "amount", len(data), data)]


def valid(rng: Random, schema: dict[str, Any], wild: bool = False) -> list[Piece]:
    """A valid value; wild: also long strings and integers of ten bytes."""
    return [piece for each in schema["fields"] for piece in _pieces(rng, each["type"], wild)]


_HUGE = (2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, 2**63 - 6)
_BAD_UTF8 = (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe2\x82", b"\xf4\x90\x80\x80", b"\x80")


def _swap_integer(rng: Random, pieces: list[Piece]) -> bytes:
    at = rng.randrange(len(pieces))
    number = pieces[at].number
    size = len(varint(number))
    heads = [
        overlong(number, rng.randrange(1, 11 - size)) if size < 10 else varint(number),
        overlong(number, 1) if size < 10 else varint(number),
        overlong(number, 11 - size + rng.choice((0, 1, 60))),
        varint(number + rng.choice((1, -1)) * 2**64),
        varint(number + rng.choice((-3, -1, 1, 2))),
        varint(-number),
        varint(rng.choice(_HUGE) * rng.choice((1, -1))),
        varint(-(2**63)),
        b"\xff" * rng.randrange(1, 12),
    ]
    return write(pieces, at, rng.choice(heads))


def _swap_piece(rng: Random, pieces: list[Piece], kind: str, data: bytes) -> bytes:
    places = [i for i, piece in enumerate(pieces) if piece.kind == kind]
    if not places:
        return write(pieces)
    at = rng.choice(places)
    return write([*pieces[:at], Piece(kind, len(data), data), *pieces[at + 1 :]])


def _swap_amount(rng: Random, pieces: list[Piece]) -> bytes:
    limit, good = 10**18, rng.randrange(-(10**18) + 1, 10**18)
    data = rng.choice(
        (
            b"",
            signed(limit, 8),
            signed(-limit, 8),
            signed(limit, 9),
            signed(2**63 - 1, 8),
            signed(-(2**63), 8),
            signed(2**63, 9),
            signed(2**64 + 5, 9),
            signed(limit - 1, rng.randrange(8, 12)),
            signed(good, rng.choice((8, 9, 16, 17, 20, 63, 64, 200))),
            b"\xff" * rng.randrange(1, 12),
            b"\x00" * rng.randrange(1, 12),
        )
    )
    return _swap_piece(rng, pieces, "amount", data)


def _swap_text(rng: Random, pieces: list[Piece], fake: bytes) -> bytes:
    whole = _text(rng, False)
    at = rng.randrange(len(whole) + 1)
    bad = whole[:at] + rng.choice(_BAD_UTF8) + whole[at:]
    return _swap_piece(rng, pieces, "text", rng.choice((bad, fake)))


def _swap_index(rng: Random, pieces: list[Piece]) -> bytes:
    places = [i for i, piece in enumerate(pieces) if piece.kind in ("enum", "branch")]
    number = rng.choice((-1, -2, 2, 3, 4, 127, 2**31, -(2**63)))
    return write(pieces, rng.choice(places), varint(number))


def _scratch(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    match rng.randrange(7):
        case 0:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + rng.randbytes(rng.choice((1, 1, 2, 9))) + data[at:]
        case 2:
            return data[:at] + data[at + rng.choice((1, 1, 2, 9)) :]
        case 3:
            return data[:at]
        case 4:
            return data + rng.randbytes(rng.choice((1, 2, 30)))
        case 5:
            return data + b"\0"
    return data[:at] + data[:at] + data[at:]


def spoiled(
    rng: Random, ids: list[int], schema_id: int, pieces: list[Piece], fake: bytes
) -> bytes | None:
    """A value with one thing done to it; most are corrupt, some are valid and merely unusual.

    `fake`: bytes that look like a record, to be put inside a string.
    """
    good = write(pieces)
    match rng.randrange(16):
        case 0:
            return None
        case 1:
            return rng.choice((b"", b"\0", framed(schema_id, good)[: rng.randrange(6)]))
        case 2:
            return bytes([rng.randrange(1, 256)]) + framed(schema_id, good)[1:]
        case 3:
            return framed(rng.choice((UNKNOWN_ID, schema_id ^ 1 << 8, 0x00800000)), good)
        case 4:
            return framed(rng.choice(ids), good)
        case 5 | 6 | 7:
            return framed(schema_id, _swap_integer(rng, pieces))
        case 8 | 9:
            return framed(schema_id, _swap_amount(rng, pieces))
        case 10:
            return framed(schema_id, _swap_text(rng, pieces, fake))
        case 11:
            return framed(schema_id, _swap_index(rng, pieces))
        case 12:
            return _scratch(rng, framed(schema_id, good))
    return framed(schema_id, _scratch(rng, good))
