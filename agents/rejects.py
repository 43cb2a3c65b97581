"""Undecodable records onto the topic of rejects: bytes as they came, the cause in headers.

Written before the rejects table's commit, so that nothing in the table is missing on the topic; a
crash in between repeats records there. `k2-cluster`, `k2-topic`, `k2-partition` and `k2-offset`
name a record, whoever has to tell a repetition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from k2.app import App
from k2.errors import BrokerUnavailable, TopicMissing
from k2.topics import REJECTS_TOPIC

__all__ = ["publish"]

#: Of a request's bytes, left for headers and framing.
_HEADER_BYTES = 8 * 1024


async def publish(app: App, tables: Iterable[pa.Table]) -> int:
    """Send what could not be decoded; return when the broker has all of it.

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
    rows = [row for table in tables for row in table.filter(wanted).to_pylist()]
    try:
        await asyncio.gather(*[await _send(app, row) for row in rows])
    except UnknownTopicOrPartitionError as exc:
        raise TopicMissing(f"{REJECTS_TOPIC}: no such topic; `k2 init` creates it") from exc
    except (KafkaError, TimeoutError) as exc:
        raise BrokerUnavailable(f"{REJECTS_TOPIC}: {len(rows)} rejects not taken: {exc}") from exc
    return len(rows)


async def _send(app: App, row: dict[str, Any]) -> Any:
    headers = {
        "k2-reason": row["reason"],
        "k2-detail": row["detail"],
        "k2-cluster": row["kafka_cluster"],
        "k2-topic": row["kafka_topic"],
        "k2-partition": str(row["kafka_partition"]),
        "k2-offset": str(row["kafka_offset"]),
    }
    key, value = row["key"], row["value"]
    room = app.conf.producer_max_request_size - _HEADER_BYTES
    if len(key or b"") + len(value or b"") > room:
        headers["k2-value-bytes"] = str(len(value or b""))
        key, value = None, None
    return await app.producer.send(
        REJECTS_TOPIC,
        key,
        value,
        None,
        row["kafka_time"].timestamp(),
        [(name, text.encode()) for name, text in headers.items()],
    )
