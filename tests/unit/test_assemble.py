"""Rows of the rejects table and of the gap ledger."""

from __future__ import annotations

import pytest
from k2.agents.assemble import assemble

from k2 import metrics
from k2.lake.offsets import Source
from k2.schemas import GAPS, TRADES
from k2.sequence import Rules
from k2.transport.fetched import RecordBatch
from tests.by_hand import DECODER, GOOD, TRADE, fetch, framed, of_values, record


@pytest.mark.parametrize("created", [1_700_000_000_000_000_000, 2**63 - 10, -(2**63)])
def test_record_whose_time_is_beyond_microseconds_is_kept(created: int) -> None:
    """Kafka does not check what a producer calls milliseconds: nanoseconds are a common slip."""
    body = record(0, GOOD) + record(1, GOOD) + record(2, None)
    fetched = fetch(RecordBatch(100, 2, 3, created, created, False, body))
    decoded = DECODER.decode(fetched)
    checked = assemble(TRADES, Source("c", "t", 0), decoded, {}, Rules(), 0, 0, 0, 0)
    rejects = checked.rejects.select(["kafka_offset", "reason"]).sort_by("kafka_offset")
    assert rejects.to_pylist() == [
        {"kafka_offset": 101, "reason": "duplicate"},
        {"kafka_offset": 102, "reason": "null_value"},
    ]


SOURCE = Source("c", "t", 0)
#: Sequences 7, 10, 8, 20 at offsets 100 to 103: 8..9 is missing, half of it comes, then 11..19 is.
JUMPS = of_values(*(framed({**TRADE, "sequence": sequence}) for sequence in (7, 10, 8, 20)))


@pytest.mark.parametrize(
    ("gaps_from", "told"), [(0, [101, 102, 103]), (102, [102, 103]), (104, [])]
)
def test_the_ledger_is_not_told_again_what_it_knows(gaps_from: int, told: list[int]) -> None:
    """Rows below its own offset are left out, whatever the other tables need."""
    decoded = DECODER.decode(JUMPS)
    checked = assemble(TRADES, SOURCE, decoded, {}, Rules(), 0, 0, gaps_from, 0)
    assert checked.gaps.schema == GAPS
    assert checked.gaps["kafka_offset"].to_pylist() == told
    assert [change.offset for change in checked.changes] == told
    assert checked.records.num_rows == 4
    sources = checked.gaps.select(["kafka_cluster", "kafka_topic", "kafka_partition"]).to_pylist()
    assert all(tuple(row.values()) == SOURCE for row in sources)


def test_gaps_are_counted_by_exchange_and_severity_with_bounded_labels() -> None:
    """Two gaps opened, of 2 and of 9; an exchange that is not ours is "other"."""
    checked = assemble(TRADES, SOURCE, DECODER.decode(JUMPS), {}, Rules(), 0, 0, 0, 0)
    for exchanges, label in (({"ASX"}, "ASX"), ({"SIM"}, "other")):
        counters = [c.labels(label, "warn") for c in (metrics.gaps_total, metrics.missing_total)]
        before = [counter._value.get() for counter in counters]
        checked.count(exchanges)
        after = [counter._value.get() for counter in counters]
        assert [now - then for now, then in zip(after, before, strict=True)] == [2, 11]


@pytest.mark.parametrize(("live_from", "counted"), [(0, 3), (101, 2), (104, 0)])
def test_what_is_known_live_counts_each_new_record_once(live_from: int, counted: int) -> None:
    """Neither a duplicate nor what counts already, whatever the tables still need."""
    repeated = of_values(*(framed({**TRADE, "sequence": n}) for n in (7, 8, 8, 9)))
    checked = assemble(TRADES, SOURCE, DECODER.decode(repeated), {}, Rules(), 0, 0, 0, live_from)
    assert checked.records.num_rows == 3
    assert sum(checked.live.latest["records"].to_pylist()) == counted
    assert sum(checked.live.bars["records"].to_pylist()) == counted
