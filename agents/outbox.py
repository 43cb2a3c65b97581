"""What K2 itself puts on topics: undecodable records on that of rejects, findings on that of gaps.

Written before the commit of the table that keeps them, so that nothing in a table is missing on
its topic; a crash in between repeats records there. Whoever has to tell a repetition: a reject is
named by the headers `k2-cluster`, `k2-topic`, `k2-partition` and `k2-offset`, a row of the ledger
by its `gap_id` and `revision`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError
from faust.exceptions import ProducerSendError

from k2.app import App
from k2.errors import BrokerUnavailable, TopicMissing
from k2.topics import GAPS_TOPIC, REJECTS_TOPIC

__all__ = ["publish_gaps", "publish_rejects"]

#: Of a request's bytes, left for headers and framing.
_HEADER_BYTES = 8 * 1024
#: Rows of the ledger that are under way at once: a broken feed may make more of them than trades.
_ROWS_AT_ONCE = 1000


class _Message(NamedTuple):
    key: bytes | None
    value: bytes | None
    timestamp_s: float
    headers: list[tuple[str, bytes]]


async def publish_rejects(app: App, tables: Iterable[pa.Table]) -> int:
    """Send what could not be decoded, bytes as they came; return when the broker has all of it.

    A value above the broker's request size is left out, its length stands in `k2-value-bytes`; the
    table has it. Duplicates are records that are known already: the table alone keeps them.

    Args:
        tables: rows of `k2.schemas.REJECTS`.

    Returns:
        How many records were sent.

    Raises:
        TopicMissing: `k2 init` has not been run on this cluster.
        BrokerUnavailable: the broker did not take the records in time.
    """
    wanted = pc.field("reason") != "duplicate"
    room = app.conf.producer_max_request_size - _HEADER_BYTES
    rows = [row for table in tables for row in table.filter(wanted).to_pylist()]
    await _send(app, REJECTS_TOPIC, [_reject(row, room) for row in rows])
    return len(rows)


async def publish_gaps(app: App, tables: Iterable[pa.Table]) -> int:
    """Send rows of the gap ledger, keyed by `gap_id`; return when the broker has all of them.

    A value is JSON: a row as /v1/gaps gives it, times in ns. All rows of a finding are in one
    partition of the topic, in their order.

    Args:
        tables: rows of `k2.schemas.GAPS`.

    Returns and raises: as `publish_rejects`.
    """
    sent = 0
    for table in tables:
        for first in range(0, table.num_rows, _ROWS_AT_ONCE):
            messages = list(_findings(table.slice(first, _ROWS_AT_ONCE)))
            await _send(app, GAPS_TOPIC, messages)
            sent += len(messages)
    return sent


async def _send(app: App, topic: str, messages: list[_Message]) -> None:
    try:
        # One after the other, so that a finding's rows keep their order. What `send` returns is
        # the delivery: to be waited for, else a row may be in the table and never on the topic.
        deliveries = [
            await app.producer.send(topic, m.key, m.value, None, *m[2:]) for m in messages
        ]
        await asyncio.gather(*deliveries)
    except (KafkaError, ProducerSendError, TimeoutError) as exc:
        cause = exc.__cause__ if isinstance(exc, ProducerSendError) else exc
        if isinstance(cause, UnknownTopicOrPartitionError):
            raise TopicMissing(f"{topic}: no such topic; `k2 init` creates it") from exc
        raise BrokerUnavailable(f"{topic}: {len(messages)} records not taken: {cause}") from exc


def _reject(row: dict[str, Any], room: int) -> _Message:
    headers = {
        "k2-reason": row["reason"],
        "k2-detail": row["detail"],
        "k2-cluster": row["kafka_cluster"],
        "k2-topic": row["kafka_topic"],
        "k2-partition": str(row["kafka_partition"]),
        "k2-offset": str(row["kafka_offset"]),
    }
    key, value = row["key"], row["value"]
    if len(key or b"") + len(value or b"") > room:
        headers["k2-value-bytes"] = str(len(value or b""))
        key, value = None, None
    encoded = [(name, text.encode()) for name, text in headers.items()]
    return _Message(key, value, row["kafka_time"].timestamp(), encoded)


def _findings(rows: pa.Table) -> Iterator[_Message]:
    for number, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type):
            ns = pc.multiply(rows[field.name].cast(pa.int64()), 1000)
            rows = rows.set_column(number, field.name, ns)
    for row in rows.to_pylist():
        yield _Message(row["gap_id"].encode(), orjson.dumps(row), row["ingest_time"] / 1e9, [])
