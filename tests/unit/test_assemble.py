"""Rows of the rejects table."""

from __future__ import annotations

import pytest
from k2.agents.assemble import assemble

from k2.lake.offsets import Source
from k2.schemas import TRADES
from k2.sequence import Rules
from k2.transport.fetched import RecordBatch
from tests.by_hand import DECODER, GOOD, fetch, record


@pytest.mark.parametrize("created", [1_700_000_000_000_000_000, 2**63 - 10, -(2**63)])
def test_record_whose_time_is_beyond_microseconds_is_kept(created: int) -> None:
    """Kafka does not check what a producer calls milliseconds: nanoseconds are a common slip."""
    body = record(0, GOOD) + record(1, GOOD) + record(2, None)
    fetched = fetch(RecordBatch(100, 2, 3, created, created, False, body))
    decoded = DECODER.decode(fetched)
    checked = assemble(TRADES, Source("c", "t", 0), decoded, {}, Rules(), 0, 0)
    rejects = checked.rejects.select(["kafka_offset", "reason"]).sort_by("kafka_offset")
    assert rejects.to_pylist() == [
        {"kafka_offset": 101, "reason": "duplicate"},
        {"kafka_offset": 102, "reason": "null_value"},
    ]
