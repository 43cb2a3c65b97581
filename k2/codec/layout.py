"""How a record lies in bytes: the fields in order, and the word for how each is encoded."""

from __future__ import annotations

from typing import Any

from k2.records import PRICE_PRECISION, PRICE_SCALE
from k2.schemas import KINDS, SIDES, Kind

__all__ = [
    "DECIMAL",
    "ENUM",
    "FRAME_BYTES",
    "LAYOUTS",
    "OPTIONAL",
    "OPTIONAL_DECIMAL",
    "Layout",
    "is_laid_out",
]

#: Name and encoding of each field.
Layout = tuple[tuple[str, str], ...]

#: Confluent's frame before the datum: 0x00 and four bytes of schema id.
FRAME_BYTES = 5


#: Logical types that change nothing for K2.
_PLAIN = ("timestamp-nanos", "uuid")


def _kind(avro: Any) -> str:
    """One word; fields with the same word encode alike and mean the same."""
    if isinstance(avro, list):
        return "|".join(_kind(branch) for branch in avro)
    if not isinstance(avro, dict):
        return str(avro)
    kind = avro.get("type")
    if kind == "enum":
        return f"enum {_unqualified(avro)} {','.join(avro['symbols'])}"
    if avro.get("logicalType", _PLAIN[0]) not in _PLAIN:
        rest = {name: avro[name] for name in ("precision", "scale") if name in avro}
        return f"{kind} {avro['logicalType']} {rest}"
    return _kind(kind)


def _unqualified(avro: dict[str, Any]) -> str:
    return str(avro.get("name")).rpartition(".")[2]


def _layout(schema: dict[str, Any]) -> Layout:
    return tuple((field["name"], _kind(field["type"])) for field in schema["fields"])


def is_laid_out(kind: Kind, schema: Any) -> bool:
    """Whether what is written by this schema lies as K2's own records of the kind do."""
    if not isinstance(schema, dict) or schema.get("type") != "record":
        return False
    if _unqualified(schema) != kind.avro["name"]:
        return False
    try:
        return _layout(schema) == LAYOUTS[kind]
    except (KeyError, TypeError):  # the registry holds anything that is JSON
        return False


LAYOUTS = {kind: _layout(kind.avro) for kind in KINDS}
DECIMAL = f"bytes decimal { ({'precision': PRICE_PRECISION, 'scale': PRICE_SCALE}) }"
ENUM = f"enum Side {','.join(SIDES)}"
OPTIONAL = "null|string"
OPTIONAL_DECIMAL = f"null|{DECIMAL}"
