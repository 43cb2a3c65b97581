"""JSON Schemas of answers: of rows from their Arrow schemas, and of what is no rows.

Objects have no other members than these, and all of them, unless they are said to be optional.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa

from k2.schemas import GAP_STATUSES, KINDS, SIDES, VERDICTS, Kind
from k2.sequence import SEVERITIES
from k2.web.columns import SAY

__all__ = [
    "BARE",
    "COVERED",
    "LIVE",
    "PINNED",
    "READY",
    "SILENCE",
    "STATUS",
    "Shape",
    "envelope",
    "perhaps",
    "record",
    "symbol",
    "thing",
    "title_of",
]

Shape = dict[str, Any]

INTEGER: Shape = {"type": "integer", "format": "int64"}
NUMBER: Shape = {"type": "number"}
TEXT: Shape = {"type": "string"}
FLAG: Shape = {"type": "boolean"}
DATE: Shape = {"type": "string", "format": "date"}
MOMENT: Shape = {"type": "string", "format": "date-time"}
DECIMAL: Shape = {"type": "string", "format": "decimal", "pattern": r"^-?[0-9]+(\.[0-9]+)?$"}

_AMONG = {
    "side": SIDES, "verdict": VERDICTS, "status": GAP_STATUSES, "severity": SEVERITIES,
    "side_tick": SIDES,
}  # fmt: skip


def record(
    title: str, schema: pa.Schema, *, some: bool = False, among: Mapping[str, Any] | None = None
) -> Shape:
    """A row of a schema as JSON has it.

    Args:
        some: columns may be chosen, so that any may be absent.
        among: of columns, all the values that there are.
    """
    values = {**_AMONG, **(among or {})}
    members = {
        field.name: {**_value(field, values.get(field.name)), **_said(field.name)}
        for field in schema
    }
    return {"title": title, **thing(members, optional=schema.names if some else ())}


def title_of(kind: Kind) -> str:
    """What one of its records is called."""
    return kind.name.removesuffix("s").title()


def _said(name: str) -> Shape:
    return {"description": SAY[name]} if name in SAY else {}


def _value(field: pa.Field, among: Collection[str] | None) -> Shape:
    shape = _of(field.type)
    if among is not None:
        shape = {**shape, "enum": list(among)}
    return perhaps(shape) if field.nullable else shape


def _of(kind: pa.DataType) -> Shape:
    if pa.types.is_decimal(kind):
        return DECIMAL
    if pa.types.is_integer(kind):
        return INTEGER
    if pa.types.is_date(kind):
        return DATE
    if pa.types.is_timestamp(kind):
        return MOMENT
    if pa.types.is_list(kind):
        return several(thing({f.name: _of(f.type) for f in kind.value_type}))
    if pa.types.is_string(kind):
        return TEXT
    raise TypeError(f"{kind}: no column of an answer is of this type")


def thing(members: Mapping[str, Shape], optional: Collection[str] = ()) -> Shape:
    """An object."""
    found: Shape = {"type": "object", "properties": dict(members), "additionalProperties": False}
    required = [name for name in members if name not in optional]
    return {**found, "required": required} if required else found


def several(shape: Shape) -> Shape:
    return {"type": "array", "items": shape}


def by_name(shape: Shape) -> Shape:
    return {"type": "object", "additionalProperties": shape}


def perhaps(shape: Shape) -> Shape:
    """It, or null."""
    if "title" in shape:  # stands by itself in the document
        return {"anyOf": [shape, {"type": "null"}]}
    more = {"enum": [*shape["enum"], None]} if "enum" in shape else {}
    kinds = shape["type"] if isinstance(shape["type"], list) else [shape["type"]]
    return {**shape, "type": [*kinds, "null"], **more}


_COVERAGE = {
    "title": "Coverage",
    **thing({"complete": FLAG, "gaps": INTEGER, "missing": INTEGER, "accepted": INTEGER}),
    "description": "What is missing of what was asked for; null: there is no gap ledger.",
}
_ABOUT = {
    "snapshot_id": {**perhaps(INTEGER), "description": "Of the table; null: none yet, or several."},
    "truncated": {**FLAG, "description": "Whether the limit cut rows off."},
    "valid_through": {
        **perhaps(INTEGER),
        "description": "ns: all that Kafka had before is in; null: not known.",
    },
    "count": {**INTEGER, "description": "Rows."},
}
#: What stands beside the rows: of the ledger and of reference data; of records; of a statement.
BARE = _ABOUT
COVERED = {
    **_ABOUT,
    "next": {**TEXT, "description": "A cursor, where the limit cut rows off."},
    "coverage": perhaps(_COVERAGE),
    "fresh": {**FLAG, "description": "Rows may be among them that are in no snapshot yet."},
}
PINNED = {**_ABOUT, "snapshots": by_name(perhaps(INTEGER))}


def envelope(row: Shape, about: Mapping[str, Shape]) -> Shape:
    """An answer in JSON: rows, and what is known of them."""
    return thing({"data": several(row), **about}, optional=("next", "fresh"))


_OFFSET = {
    "title": "NextOffset",
    **thing({"cluster": TEXT, "topic": TEXT, "partition": INTEGER, "next_offset": INTEGER}),
}
_TABLE = {
    "table": TEXT,
    "rows": INTEGER,
    "files": INTEGER,
    "snapshot_id": perhaps(INTEGER),
    "snapshot_ts": {**perhaps(INTEGER), "description": "ns: when it was committed."},
    "commit_age_seconds": perhaps(NUMBER),
    "offsets": several(_OFFSET),
}
STATUS = {
    "title": "Status",
    **thing(
        {
            **_TABLE,
            "rejects": {**INTEGER, "description": "Rows of the table of rejects."},
            **{kind.name: thing(_TABLE) for kind in KINDS[1:]},
        }
    ),
}

LIVE = thing({"live": {**FLAG, "const": True}})
READY = thing({"ready": FLAG, "reasons": {"type": "object", "description": "Why it is not."}})

_SPEAKS = {"exchange": TEXT, "kind": {**TEXT, "enum": [kind.name for kind in KINDS]}}
SILENCE = thing(
    {
        "watched": {**several(TEXT), "description": "Topics of which it can be told."},
        "limits": by_name(
            thing(
                {
                    "symbol_seconds": perhaps(NUMBER),
                    "topic_seconds": perhaps(NUMBER),
                    "open": {
                        **FLAG,
                        "description": "Whether the exchange is; else none is silent.",
                    },
                }
            )
        ),
        "topics": several(thing({**_SPEAKS, "topic": TEXT, "last_ts_event": perhaps(INTEGER)})),
        "symbols": several(thing({**_SPEAKS, "symbol": perhaps(TEXT), "last_ts_event": INTEGER})),
    }
)

_RANGE = {"first": INTEGER, "last": INTEGER}
_SEQUENCES = {"title": "Sequences"} | thing(
    {
        "session": perhaps(DATE),
        "last_sequence": perhaps(INTEGER),
        "rows": INTEGER,
        "health": {**TEXT, "enum": ["complete", "gaps"]},
        "open_gaps": INTEGER,
        "missing": INTEGER,
        "gaps": several(
            thing(
                {
                    "missing_first": INTEGER,
                    "missing_last": INTEGER,
                    "remaining": several(thing(_RANGE)),
                    "from_ts": INTEGER,
                    "to_ts": INTEGER,
                    "seen_at": INTEGER,
                }
            )
        ),
        "gaps_found": INTEGER,
        "missing_found": INTEGER,
        "late": INTEGER,
        "duplicates": INTEGER,
        "resets": INTEGER,
    }
)
_PRICES = dict.fromkeys(("open", "high", "low", "close", "volume"), DECIMAL)
_STATISTICS = {**_PRICES, "vwap": perhaps(DECIMAL)}
_OF_TRADES = {**_STATISTICS, "notional": DECIMAL, "first_ts": INTEGER, "last_ts": INTEGER}


def symbol() -> Shape:
    """What is known live of a symbol."""
    return {"title": "Symbol"} | thing(
        {
            "exchange": TEXT,
            "symbol": TEXT,
            "trade": perhaps(_latest(KINDS[0])),
            "quote": perhaps(_latest(KINDS[1])),
            "session": thing(
                {"session": DATE, "trades": INTEGER, "quotes": INTEGER, **_OF_TRADES},
                optional=tuple(_OF_TRADES),
            ),
            "sequences": thing({kind.name: perhaps(_SEQUENCES) for kind in KINDS}),
            "as_of": several(_OFFSET),
            "bars": several(thing({"start": INTEGER, **_STATISTICS, "trades": INTEGER})),
        },
        optional=("bars",),
    )


def _latest(kind: Kind) -> Shape:
    own = [field for field in kind.batch if field.name not in ("exchange", "symbol")]
    session = pa.field("session", pa.date32(), nullable=False)
    return record(f"Last{title_of(kind)}", pa.schema([session, *own]))
