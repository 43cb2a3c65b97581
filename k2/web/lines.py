"""JSON Schema of a line of a replay, in NDJSON and over a WebSocket."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from k2.replay.records import FIELDS, FINDING, TYPES
from k2.schemas import GAP_KINDS, GAPS, KINDS, TRADES
from k2.web.shapes import Shape, record, thing, title_of

__all__ = ["event", "line"]

_TYPE = pa.field("type", pa.string(), nullable=False)
_CURSOR = pa.field("cursor", pa.string(), nullable=False)
_TEXT, _INTEGER = {"type": "string"}, {"type": "integer", "format": "int64"}
#: What K2 itself says, beside type and cursor.
_SAYS: dict[str, dict[str, Shape]] = {
    "replay_started": {
        "speed": {"type": "number"},
        "since": {"type": ["string", "integer", "null"]},
    },
    "replay_completed": {
        **{kind.name: _INTEGER for kind in KINDS},
        "gaps": _INTEGER,
        "digest": _TEXT,
        "since": {"type": ["string", "integer", "null"]},
    },
    "paused": {},
    "resumed": {},
    "speed": {"speed": {"type": "number"}},
    "refused": {"detail": _TEXT},
    "waiting": {"detail": _TEXT},
    "heartbeat": {},
    "error": {"detail": _TEXT, "retriable": {"type": "boolean"}},
}


def line() -> Shape:
    """A record, a finding of the gap ledger, or what K2 itself says; its `type` tells which."""
    records = [_record(f"Played{title_of(kind)}", TYPES[kind], kind.table) for kind in KINDS]
    found = pa.schema([TRADES.table.field("ts_event"), *GAPS])
    records.append(_record("PlayedGap", FINDING, found, kind=GAP_KINDS))
    said = [
        {"title": _title(name), **thing({"type": {"const": name}, **more, "cursor": _TEXT})}
        for name, more in _SAYS.items()
    ]
    return {"oneOf": [*records, *said]}


def event() -> Shape:
    """The same as an event that a server sends: its id is the cursor."""
    data = {**_TEXT, "contentMediaType": "application/json", "contentSchema": line()}
    return {"type": "object", "properties": {"id": _TEXT, "data": data}, "required": ["id", "data"]}


def _title(name: str) -> str:
    return "".join(part.title() for part in name.split("_"))


def _record(title: str, type_: str, table: pa.Schema, **among: Any) -> Shape:
    fields = {"type": _TYPE, "cursor": _CURSOR}
    chosen = [fields.get(name) or table.field(name) for name in FIELDS[type_]]
    return record(title, pa.schema(chosen), among={"type": (type_,), **among})
