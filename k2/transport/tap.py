"""The tap on aiokafka's fetcher: raw record batches instead of a ConsumerRecord per record.

aiokafka makes one Python object per record in `PartitionRecords`, lazily. For batch topics the tap
replaces that iterator, right after a fetch response was stored, by one that yields a single
`Fetched`; positions, back-off, pausing and rebalances stay aiokafka's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from aiokafka.consumer.fetcher import (
    READ_UNCOMMITTED,
    Fetcher,
    FetchError,
    FetchResult,
    PartitionRecords,
)
from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition

from k2.errors import LogTruncated
from k2.transport.fetched import Fetched, LogEnd, parse

__all__ = ["tap"]


class _OneFetch(Iterator[Fetched]):
    """Stands for `PartitionRecords`: yields one `Fetched`, then moves the position behind it."""

    def __init__(
        self,
        tp: TopicPartition,
        offset: int,
        response: tuple[bytes, Any, int],
        end: LogEnd,
        seek: Callable[[TopicPartition], tuple[int, int]],
    ) -> None:
        """`response`: the records, the aborted transactions, the high watermark."""
        self.next_fetch_offset = offset
        self._tp, self._end, self._seek = tp, end, seek
        self._response: tuple[bytes, Any, int] | None = response

    def __next__(self) -> Fetched:
        if self._response is None:
            raise StopIteration
        (raw, aborted, log_end), tp = self._response, self._tp
        fetched = parse(tp.topic, tp.partition, self.next_fetch_offset, raw, aborted or ())
        self.next_fetch_offset, self._response = fetched.next_offset, None
        seek, place = self._seek(tp)
        return replace(fetched, seek=seek, place=place, log_end=log_end, end=self._end)


class _Client:
    """The fetcher's client, which keeps each fetch response until the fetcher has stored it."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.responses: dict[int, tuple[Any, int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node_id: Any, request: Any, **kwargs: Any) -> Any:
        if isinstance(request, OffsetRequest):
            # The end of a log is where it ends, not where its oldest open transaction starts.
            request._isolation_level = READ_UNCOMMITTED
        asked_at = time.time_ns()
        response = await self._client.send(node_id, request, **kwargs)
        if isinstance(request, FetchRequest):
            self.responses[id(request)] = response, asked_at
        return response


def tap(
    fetcher: Fetcher,
    topics: Collection[str],
    seek: Callable[[TopicPartition], tuple[int, int]],
    ends: MutableMapping[TopicPartition, LogEnd],
) -> None:
    """Make `fetcher` return one `Fetched` per fetched partition of `topics`.

    Args:
        seek: numbers a fetch that is given out, in the fetcher's thread: the partition's newest
            seek, and how many were given out since. After an assignment aiokafka reads from the
            group's offset until it is told otherwise; the first number tells what it read before
            from what it reads after. A hole in the second is a fetch that was given to nobody.
        ends: by partition, put in with every response, also with one that has no records.
    """
    client = fetcher._client = _Client(fetcher._client)
    stock = fetcher._proc_fetch_request

    async def process(assignment: Any, node_id: Any, request: Any) -> Any:
        try:
            wakeup = await stock(assignment, node_id, request)
        finally:
            response, asked_at = client.responses.pop(id(request), (None, 0))
        # No await from here on: nobody may see the stock iterator of a batch topic.
        if response is not None:
            for topic, partitions in response.topics:
                if topic in topics:
                    for partition, error, end, *rest in partitions:
                        tp = TopicPartition(topic, partition)
                        if error == OffsetOutOfRangeError.errno:
                            fetcher._records[tp] = FetchError(error=_truncated(tp), backoff=0)
                            wakeup = True
                        version, fields = response.API_VERSION, (end, *rest)
                        if not error:
                            ends[tp] = _end(fields, version, asked_at)
                        made = fetcher._records.get(tp)
                        _replace(made, tp, fields, version, ends.get(tp, LogEnd()), seek)
        return wakeup

    fetcher._proc_fetch_request = process


def _truncated(tp: TopicPartition) -> LogTruncated:
    # aiokafka would go on at the log's start, a silent skip or a repetition.
    return LogTruncated(
        f"{tp.topic}[{tp.partition}]: the offset that Iceberg needs next is not in the log: "
        f"was the topic recreated, or did retention outrun the worker?"
    )


def _end(fields: Sequence[Any], version: int, asked_at: int) -> LogEnd:
    # Not when the answer came: the broker may have looked right after it was asked.
    stable = fields[1] if version >= 4 else -1
    return LogEnd(stable if stable >= 0 else fields[0], asked_at)


def _replace(
    made: Any,
    tp: TopicPartition,
    fields: Sequence[Any],
    version: int,
    end: LogEnd,
    seek: Callable[[TopicPartition], tuple[int, int]],
) -> None:
    """Replace what the fetcher made of a response; `fields` from its high watermark on."""
    if isinstance(made, FetchResult) and isinstance(made._partition_records, PartitionRecords):
        # Version 11 appended the preferred read replica behind the aborted transactions.
        aborted = fields[3] if version >= 11 else fields[-2] if version >= 4 else ()
        offset = made._partition_records.next_fetch_offset
        response = fields[-1], aborted, fields[0]
        made._partition_records = _OneFetch(tp, offset, response, end, seek)
