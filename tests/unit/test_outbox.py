"""What goes to K2's own topics: a row counts as sent when the broker has it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from aiokafka.errors import KafkaTimeoutError, UnknownTopicOrPartitionError
from faust.exceptions import ProducerSendError
from k2.agents.outbox import publish_gaps

from k2.errors import BrokerUnavailable, TopicMissing
from k2.schemas import GAPS


def ledger(count: int) -> pa.Table:
    def value(field: pa.Field, number: int) -> Any:
        if pa.types.is_string(field.type):
            return f"{field.name}-{number}"
        return [] if pa.types.is_list(field.type) else number

    rows = {f.name: [value(f, n) for n in range(count)] for f in GAPS}
    return pa.table([pa.array(rows[f.name], f.type) for f in GAPS], schema=GAPS)


class Producer:
    """Takes records as Faust's does: what it returns is the delivery, still to come."""

    def __init__(self, expected: int = 0, refuses: Exception | None = None) -> None:
        self.all_sent = asyncio.Event()
        self._expected = expected
        self.sent: list[tuple[bytes, asyncio.Future[None]]] = []
        self._refuses = refuses

    async def send(self, topic: str, key: bytes, *more: Any) -> asyncio.Future[None]:
        if self._refuses:
            raise ProducerSendError("Error while sending") from self._refuses
        self.sent.append((key, asyncio.get_running_loop().create_future()))
        if len(self.sent) == self._expected:
            self.all_sent.set()
        return self.sent[-1][1]


def app(producer: Producer) -> Any:
    return SimpleNamespace(producer=producer)


async def test_a_row_is_sent_when_it_is_delivered() -> None:
    producer = Producer(3)
    task = asyncio.ensure_future(publish_gaps(app(producer), [ledger(3)]))
    await producer.all_sent.wait()
    assert [key for key, _ in producer.sent] == [b"gap_id-0", b"gap_id-1", b"gap_id-2"]
    for _, delivery in producer.sent:
        assert not (await asyncio.wait([task], timeout=0.01))[0]
        delivery.set_result(None)
    assert await task == 3


async def test_a_row_that_is_not_delivered_is_an_error() -> None:
    producer = Producer(2)
    task = asyncio.ensure_future(publish_gaps(app(producer), [ledger(2)]))
    await producer.all_sent.wait()
    producer.sent[0][1].set_result(None)
    producer.sent[1][1].set_exception(KafkaTimeoutError("too late"))
    with pytest.raises(BrokerUnavailable, match=r"market\.gaps: 2 records not taken.*too late"):
        await task


async def test_a_row_that_is_not_taken_says_why() -> None:
    with pytest.raises(TopicMissing, match=r"market\.gaps: no such topic; `k2 init`"):
        await publish_gaps(app(Producer(refuses=UnknownTopicOrPartitionError())), [ledger(1)])
    with pytest.raises(BrokerUnavailable, match=r"market\.gaps: 1 records not taken.*too late"):
        await publish_gaps(app(Producer(refuses=KafkaTimeoutError("too late"))), [ledger(1)])
