"""Avro, Arrow and Iceberg schemas, all derived from `k2.records`; and the kinds of record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from k2.records import Instrument, Quote, Side, Trade

__all__ = [
    "COLUMNS",
    "GAPS",
    "GAP_KINDS",
    "GAP_STATUSES",
    "INSTRUMENTS",
    "INSTRUMENT_AVRO",
    "KINDS",
    "QUOTES",
    "REJECTS",
    "REPLAYS",
    "SIDES",
    "TRADES",
    "VERDICTS",
    "Kind",
    "kind_of",
]

#: Verdicts of the sequence check; a duplicate is not written to its table but to rejects.
VERDICTS = ("first", "ok", "gap", "late", "reset", "duplicate")

#: What the gap ledger tells of, in the order in which it tells of what one record caused.
GAP_KINDS = ("gap", "duplicates", "out_of_session", "reset")

#: `forgotten`: what remained can no longer be told from what has come; a late row of it is kept,
#: and closes nothing. `accepted`: somebody, or the calendar, says that it is all right.
GAP_STATUSES = ("open", "partly_filled", "filled", "forgotten", "accepted")

SIDES = tuple(side.value for side in Side)

_TIME = pa.timestamp("us", tz="UTC")

#: Where a row came from; with these four the audit can name any record of any topic.
_SOURCE_FIELDS = [
    pa.field("kafka_cluster", pa.string(), nullable=False),
    pa.field("kafka_topic", pa.string(), nullable=False),
    pa.field("kafka_partition", pa.int32(), nullable=False),
    pa.field("kafka_offset", pa.int64(), nullable=False),
]
_INGEST_TIME = pa.field("ingest_time", _TIME, nullable=False)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Kind:
    """A kind of record: everything in which trades and quotes differ for most of K2."""

    name: str  # of the Iceberg table, of the topics, of the command and the view
    avro: dict[str, Any]  # schema of a value
    columns: pa.Schema  # the record's own fields, in their order
    batch: pa.Schema  # of what was decoded: the columns, and the offset of each row
    table: pa.Schema  # of the Iceberg table

    def __repr__(self) -> str:
        return f"Kind({self.name!r})"

    def topic(self, exchange: str) -> str:
        """Name the topic of an exchange."""
        return f"{self._topics}{exchange.lower()}"

    def has_topic(self, topic: str) -> bool:
        """Whether a topic, of whatever exchange, holds this kind."""
        return topic.startswith(self._topics)

    @property
    def _topics(self) -> str:
        return f"market.{self.name}."


def kind_of(topic: str) -> Kind | None:
    """Return the kind of record that a topic holds; None: it is no topic of a feed."""
    return next((kind for kind in KINDS if kind.has_topic(topic)), None)


def _arrow_type(avro: Any) -> pa.DataType:
    if isinstance(avro, list):
        (avro,) = (branch for branch in avro if branch != "null")
    if isinstance(avro, dict):
        if avro.get("logicalType") == "decimal":
            return pa.decimal128(avro["precision"], avro["scale"])
        if avro.get("logicalType") == "date":
            return pa.date32()
        if avro["type"] == "enum":
            return pa.string()
        return _arrow_type(avro["type"])
    return {"string": pa.string(), "long": pa.int64(), "bytes": pa.binary()}[avro]


def _arrow_field(avro: dict[str, Any]) -> pa.Field:
    return pa.field(
        avro["name"], _arrow_type(avro["type"]), nullable=isinstance(avro["type"], list)
    )


def _derived(record: type[Trade | Quote | Instrument]) -> tuple[dict[str, Any], pa.Schema]:
    avro = json.loads(record.avro_schema())
    return avro, pa.schema([_arrow_field(field) for field in avro["fields"]])


def _kind(name: str, record: type[Trade | Quote]) -> Kind:
    avro, columns = _derived(record)
    table = [
        columns.field("exchange"),
        columns.field("symbol"),
        pa.field("session", pa.date32(), nullable=False),
        pa.field("event_time", _TIME, nullable=False),
        *(field for field in columns if field.name not in ("exchange", "symbol")),
        pa.field("verdict", pa.string(), nullable=False),
        *_SOURCE_FIELDS,
        _INGEST_TIME,
    ]
    offset = pa.field("kafka_offset", pa.int64(), nullable=False)
    return Kind(name, avro, columns, pa.schema([*columns, offset]), pa.schema(table))


TRADES = _kind("trades", Trade)
QUOTES = _kind("quotes", Quote)
KINDS = (TRADES, QUOTES)

#: What answers have unless columns are named: all but the copies of ts_event and of the source.
COLUMNS = {
    kind: tuple(
        name
        for name in kind.table.names
        if name not in ("event_time", "kafka_cluster", "ingest_time")
    )
    for kind in KINDS
}

#: Reference data is no kind: it is not counted by sequences, and only the newest value of a key is.
INSTRUMENT_AVRO, INSTRUMENTS = _derived(Instrument)

#: The Iceberg table of rejects. `reason` is a fixed word, `detail` says what exactly was wrong.
REJECTS = pa.schema(
    [
        *_SOURCE_FIELDS,
        pa.field("kafka_time", _TIME, nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("exchange", pa.string()),
        pa.field("symbol", pa.string()),
        pa.field("session", pa.date32()),
        pa.field("sequence", pa.int64()),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
        _INGEST_TIME,
    ]
)

#: The Iceberg table of what `k2 rejects replay` did. `state` is intended (before it is sent) or
#: done (the broker has it, at `sent_offset`); `log_end` is where to look for it when in doubt.
REPLAYS = pa.schema(
    [
        pa.field("replay", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        *_SOURCE_FIELDS,
        pa.field("sent_cluster", pa.string(), nullable=False),
        pa.field("log_end", pa.int64()),
        pa.field("sent_offset", pa.int64()),
        pa.field("operator", pa.string(), nullable=False),
        pa.field("noted_at", _TIME, nullable=False),
    ]
)

_BOUNDS = [pa.field(name, pa.int64(), nullable=False) for name in ("first", "last")]
_INTERVAL = pa.field("element", pa.struct(_BOUNDS), nullable=False)

#: The Iceberg table of the gap ledger, a log: of each `gap_id` the row with the highest `revision`
#: counts, of several the one with the latest `ingest_time`: an operator's. `kafka_offset` is of
#: the record that caused the row, and is what a sink goes by; `k2.sequence.ledger.Change` says what
#: the columns mean for each kind.
GAPS = pa.schema(
    [
        pa.field("gap_id", pa.string(), nullable=False),
        TRADES.columns.field("exchange"),
        pa.field("symbol", pa.string()),  # null: one counter for all symbols of the partition
        pa.field("session", pa.date32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("severity", pa.string(), nullable=False),
        pa.field("missing_first", pa.int64(), nullable=False),
        pa.field("missing_last", pa.int64(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("remaining_count", pa.int64(), nullable=False),
        pa.field("from_offset", pa.int64(), nullable=False),
        pa.field("from_ts", pa.int64(), nullable=False),
        pa.field("to_offset", pa.int64(), nullable=False),
        pa.field("to_ts", pa.int64(), nullable=False),
        pa.field("seen_at", _TIME, nullable=False),
        pa.field("filled_at", _TIME),
        pa.field("revision", pa.int64(), nullable=False),
        pa.field("operator", pa.string()),  # of an accepted one: who, and why; null: the calendar
        pa.field("reason", pa.string()),
        *_SOURCE_FIELDS,
        _INGEST_TIME,
        # Last: catalogs number what a column is made of before or behind the columns after it.
        pa.field("remaining", pa.list_(_INTERVAL), nullable=False),
    ]
)
