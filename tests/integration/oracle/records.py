"""The topics' records against the tables' rows: every offset once, and as it was sent."""

from __future__ import annotations

import io
import json
import urllib.request
from typing import Any

import duckdb
import pyarrow as pa
from fastavro import parse_schema, schemaless_reader

from k2.settings import Settings
from tests.integration.oracle.tables import NAMES, connect, one
from tests.integration.oracle.topic import RECORDS, Topics
from tests.integration.oracle.wrong import Wrong, listed

__all__ = ["FIELDS", "same_as_topics"]

#: fastavro reads 100,000 values a second: of longer logs every n-th value is read.
DECODED_MAX = 500_000
BATCH_ROWS = 50_000
#: Magic byte and schema id: Confluent's wire format.
HEADER_BYTES = 5

#: A trade as it is sent; said here again, so that a change of it in K2 is seen.
FIELDS = pa.schema(
    {
        "exchange": pa.string(),
        "symbol": pa.string(),
        "sequence": pa.int64(),
        "ts_event": pa.int64(),
        "ts_recv": pa.int64(),
        "price": pa.decimal128(18, 8),
        "size": pa.decimal128(18, 8),
        "side": pa.string(),
        "trade_id": pa.string(),
        "conditions": pa.string(),
        "venue": pa.string(),
    }
)

_DECODED = pa.schema([*(RECORDS.field(at) for at in range(3)), *FIELDS])
_PLACE = "topic, partition, kafka_offset"
_NAMED = "format('{}[{}]@{}', topic, partition, kafka_offset)"

#: Rows of this cluster's topics that the broker still can tell about; retention may have taken
#: records before them.
_HELD = """
CREATE TABLE {name}_held AS
SELECT kafka_topic AS topic, kafka_partition AS partition, t.*
FROM {name} t JOIN bounds b ON b.topic = t.kafka_topic AND b.partition = t.kafka_partition
WHERE t.kafka_cluster = ? AND t.kafka_offset >= b.start
"""


def same_as_topics(settings: Settings, topics: Topics) -> None:
    """Each record is in trades or in rejects, once, and says there what it says in its topic.

    Trades are compared in all fields: every one, but of logs with more than DECODED_MAX of them
    every n-th, as reading Avro value by value takes its time; there `same_as_stream` compares all
    of them with what the simulation made. Rejects are compared in their raw key and value.
    What retention took from a log's start is left out; compaction since a worker read would be
    found as rows without a record.

    Raises:
        Wrong: names places as topic[partition]@offset.
    """
    with connect(settings) as connection:
        connection.register("records", topics.records)
        connection.register("bounds", _bounds(topics))
        for name in NAMES:
            connection.execute(_HELD.format(name=name), [topics.cluster])
        _each_once(connection)
        _require_equal(connection, "records", "rejects", ("key", "value"))
        _decode(connection, settings)
        _require_equal(connection, "decoded", "trades", tuple(FIELDS.names))


def _bounds(topics: Topics) -> pa.Table:
    places = [(*place, start) for place, (start, _) in topics.bounds.items()]
    columns = list(zip(*places, strict=True))
    return pa.table(dict(zip(("topic", "partition", "start"), columns, strict=True)))


def _each_once(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        f"CREATE TABLE held AS SELECT {_PLACE}, count(*) AS n FROM ("
        f" SELECT {_PLACE} FROM trades_held UNION ALL SELECT {_PLACE} FROM rejects_held"
        ") GROUP BY ALL"
    )

    def places(sql: str) -> list[str]:
        found = connection.execute(f"SELECT {_NAMED} FROM {sql} ORDER BY {_PLACE}").fetchall()
        return [place for (place,) in found]

    lost = places(f"records ANTI JOIN held USING ({_PLACE})")
    twice = places("held WHERE n > 1")
    never = places(f"held ANTI JOIN records USING ({_PLACE})")
    said = [
        f"{what} {listed(found)}"
        for what, found in (
            ("in neither table:", lost),
            ("more than once in the tables:", twice),
            ("in a table, but not in the topic:", never),
        )
        if found
    ]
    if said:
        doubled = one(connection, "SELECT coalesce(sum(n - 1), 0)::BIGINT FROM held")
        raise Wrong("; ".join(said), lost=len(lost), doubled=doubled)


def _decode(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Make the view decoded: places and fields of the records that are in trades."""
    every = -(-one(connection, "SELECT count(*) FROM trades_held") // DECODED_MAX) or 1
    chosen = connection.sql(
        f"SELECT {_PLACE}, value FROM records SEMI JOIN trades_held USING ({_PLACE})"
        f" WHERE kafka_offset % {every} = 0"
    ).to_arrow_reader(BATCH_ROWS)
    values = _Values(settings)
    tables = [_DECODED.empty_table(), *(values.decode(batch) for batch in chosen)]
    connection.register("decoded", pa.concat_tables(tables))


def _require_equal(
    connection: duckdb.DuckDBPyConnection, sent: str, table: str, names: tuple[str, ...]
) -> None:
    other = {name: f"s.{name} IS DISTINCT FROM h.{name}" for name in names}
    told = ", ".join(
        f"CASE WHEN {differs} THEN format('{name} {{}}, sent {{}}', "
        f"coalesce(h.{name}::VARCHAR, 'null'), coalesce(s.{name}::VARCHAR, 'null')) END"
        for name, differs in other.items()
    )
    found = connection.execute(
        f"SELECT format('{{}}[{{}}]@{{}}: {{}}', topic, partition, kafka_offset,"
        f" concat_ws('; ', {told})) FROM {sent} s JOIN {table}_held h USING ({_PLACE})"
        f" WHERE {' OR '.join(other.values())} ORDER BY {_PLACE}"
    ).fetchall()
    if found:
        raise Wrong(f"{table}: {len(found)} rows changed: {listed(row for (row,) in found)}")


class _Values:
    """Reads values in Confluent's wire format; schemas by id, from where the settings say."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[int, Any] = {}

    def decode(self, batch: pa.RecordBatch) -> pa.Table:
        """Return the records' places and fields.

        Raises:
            Wrong: a value is no trade, though the table of trades has it.
        """
        records = []
        for row in batch.to_pylist():
            try:
                records.append(self._read(row["value"]))
            except Exception as exc:
                place = f"{row['topic']}[{row['partition']}]@{row['kafka_offset']}"
                raise Wrong(f"{place}: in trades, but its value is none: {exc!r}") from exc
        fields = pa.Table.from_pylist(records, FIELDS)
        return pa.table([*batch.drop_columns("value").columns, *fields.columns], schema=_DECODED)

    def _read(self, value: bytes) -> Any:
        magic, schema_id = value[0], int.from_bytes(value[1:HEADER_BYTES], "big")
        assert magic == 0, f"magic byte {magic}"
        body = io.BytesIO(value)
        body.seek(HEADER_BYTES)
        record = schemaless_reader(body, self._schema(schema_id), None)
        assert body.tell() == len(value), f"{len(value) - body.tell()} bytes follow"
        return record

    def _schema(self, schema_id: int) -> Any:
        if schema_id not in self._known:
            self._known[schema_id] = parse_schema(self._registered(schema_id))
        return self._known[schema_id]

    def _registered(self, schema_id: int) -> Any:
        if url := self._settings.registry_url:
            with urllib.request.urlopen(f"{url.rstrip('/')}/schemas/ids/{schema_id}") as answer:
                return json.loads(json.load(answer)["schema"])
        registry = json.loads((self._settings.data / "registry.json").read_bytes())
        return registry["schemas"][str(schema_id)]
