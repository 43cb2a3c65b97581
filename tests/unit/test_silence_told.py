"""Who is silent: by the hours of the exchange, from the packed states alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faust.types import TP
from k2.agents.assignment import Partition
from k2.agents.lane import Lane
from k2.agents.silence import Silence
from k2.tables.segments import Segments

from k2 import metrics
from k2.calendars import load
from k2.lake.catalog import ensure_tables, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source
from k2.live import Live
from k2.schemas import TRADES
from k2.sequence import Memory, SymbolState
from k2.sequence.state import Chain
from k2.settings import Settings
from k2.silence import Hours, hours, quiet
from tests.by_hand import DECODER
from tests.unit.test_calendars import ns

S = 1_000_000_000
TOPIC = TRADES.topic("SIM")
#: Symbols after 60 s, topics after 10 s.
SETTINGS = {"exchanges": "SIM,ASX", "silence_limits": "SIM=60:10,ASX=60:10"}
NOW = ns("2024-03-12 12:00", "UTC")


def state(last_ts: int) -> SymbolState:
    return Memory(0, Chain(1, 1, last_ts, 0, []), 0, 1).pack()


@pytest.mark.parametrize(
    ("now", "since", "opened"),
    [
        ("2024-03-12 12:00", "2024-03-11 10:00", "2024-03-12 10:00"),
        ("2024-03-11 10:00", "2024-03-08 10:00", "2024-03-11 10:00"),  # over a weekend
    ],
)
def test_the_clock_starts_at_the_open_of_the_running_session(
    now: str, since: str, opened: str
) -> None:
    """And a symbol counts that had a record in that session, or in the one before."""
    calendar = load("XASX")
    assert calendar is not None
    moment = hours(calendar, "UTC", ns(now))
    assert moment is not None
    assert moment.open == ns(opened)
    before = calendar.place(np.array([moment.since - 1, moment.since]), 10**15)[0]
    dates = np.array(before, "datetime64[D]").astype(str).tolist()
    assert dates[1] == since[:10] > dates[0]


@pytest.mark.parametrize("now", ["2024-03-12 09:59", "2024-03-12 16:00", "2024-03-09 12:00"])
def test_nobody_is_silent_while_the_exchange_is_closed(now: str) -> None:
    """Before the open, from the close on, on a Saturday."""
    assert hours(load("XASX"), "UTC", ns(now)) is None


def test_what_never_closes_has_a_clock_that_goes_on_over_midnight() -> None:
    """Today and yesterday count, by the exchange's own date."""
    now = ns("2024-03-12 00:01", "Asia/Tokyo")
    moment = hours(load("24/7"), "Asia/Tokyo", now)
    assert moment == Hours(now, *[ns("2024-03-11 00:00", "Asia/Tokyo")] * 2)
    last = np.array([now - 120 * S, now - 60 * S, now - 61 * S, now + S, moment.since - 1])
    assert quiet(last, moment, 60).tolist() == [0, 2]


def test_before_the_limit_has_passed_since_the_open_nobody_is_silent() -> None:
    opened = NOW - 30 * S
    last = np.array([opened - 3600 * S, opened + S])
    assert quiet(last, Hours(NOW, 0, opened), 30).tolist() == []
    assert quiet(last, Hours(NOW + S, 0, opened), 30).tolist() == [0]


class Worker:
    """Partitions of a worker, and what its looks say."""

    def __init__(self, data: Path) -> None:
        settings = Settings(data=data, **SETTINGS)
        catalog = open_catalog(settings)
        ensure_tables(catalog, settings)
        sink = Sink(catalog, table_name(settings, TRADES), settings)
        self.lane = Lane(TRADES, DECODER, sink)
        self.silence = Silence(settings)
        self.partitions: dict[TP, Partition] = {}
        self.ends: dict[TP, int | None] = {}

    def own(self, number: int, **last: int) -> Partition:
        """A partition, read to its end; `last`: by symbol how long ago its record was, s."""
        tp = TP(TOPIC, number)
        states = {("SIM", symbol): state(NOW - ago * S) for symbol, ago in last.items()}
        partition = Partition(
            source=Source("c", *tp),
            lane=self.lane,
            next_offset=7,
            records_at=7,
            rejects_at=None,
            gaps_at=None,
            sequences=Segments(states),
            live=Live(TRADES, 0, lambda name, copied: None),
            epoch="",
            topic_id=None,
            accepted=7,
            log_end=7,
        )
        self.partitions[tp], self.ends[tp] = partition, 7
        return partition

    def look(self, after: int = 0) -> tuple[list[str], list[str]]:
        """The silent topics and symbols; `after`: s."""
        self.silence.look(self.partitions, self.ends.get, NOW + after * S)
        said = self.silence.report()
        return [r["topic"] for r in said["topics"]], [r["symbol"] for r in said["symbols"]]

    def sample(self, gauge: Any) -> float | None:
        return next(
            (s.value for m in gauge.collect() for s in m.samples if s.labels["exchange"] == "SIM"),
            None,
        )


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


def test_symbols_are_silent_by_their_own_limit(worker: Worker) -> None:
    """One that was not there yesterday is gone; one of another exchange does not count."""
    worker.own(0, A=5, B=61, GONE=7 * 86_400).sequences.states["ASX", "C"] = state(NOW - 61 * S)
    worker.own(1, D=60)
    assert worker.look() == ([], ["B"])
    assert worker.sample(metrics.silent_symbols) == 1
    assert worker.look(1) == ([], ["B", "D"])
    (_, row) = worker.silence.report("SIM")["symbols"]
    assert row == {
        "exchange": "SIM", "kind": "trades", "symbol": "D", "last_ts_event": NOW - 60 * S
    }  # fmt: skip
    assert worker.silence.report("ASX")["symbols"] == []


def test_a_topic_is_silent_once_and_speaks_again_once(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    """Silent if all of its partitions are; one that never had a record does not count."""
    caplog.set_level(logging.INFO)
    quiet_one, _ = worker.own(0, A=20), worker.own(1, B=9)
    worker.own(2)
    assert worker.look()[0] == []
    for after in (2, 3):
        assert worker.look(after)[0] == [TOPIC]
    assert worker.sample(metrics.silent_topics) == 1
    quiet_one.sequences.states["SIM", "A"] = state(NOW + 4 * S)
    for after in (4, 5):
        assert worker.look(after)[0] == []
    assert worker.sample(metrics.silent_topics) == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"{TOPIC} is silent: no record for 11 s in partitions 0, 1",
        f"{TOPIC} speaks again",
    ]


def test_what_is_not_read_to_its_end_may_speak_but_is_not_called_silent(worker: Worker) -> None:
    """Behind the log, with a batch in hand, or before the first fetch."""
    tp, partition = TP(TOPIC, 0), worker.own(0, A=100)
    for worker.ends[tp], partition.accepted in ((8, 7), (7, 6), (None, 7)):
        assert worker.look() == ([], [])
    worker.ends[tp], partition.accepted = 7, 7
    assert worker.look() == ([TOPIC], ["A"])
    # Known to be silent it stays so, until a record is there.
    worker.ends[tp] = 8
    assert worker.look() == ([TOPIC], ["A"])
    partition.sequences.states["SIM", "A"] = state(NOW)
    assert worker.look()[0] == []


def test_partitions_that_are_gone_are_not_reported(worker: Worker) -> None:
    worker.own(0, A=100)
    assert worker.look() == ([TOPIC], ["A"])
    worker.partitions.clear()
    assert worker.look() == ([], [])
    assert worker.sample(metrics.silent_symbols) is None


def test_a_closed_exchange_is_said_to_be_closed(tmp_path: Path) -> None:
    """At noon UTC Sydney has long closed."""
    silence = Silence(Settings(data=tmp_path, **SETTINGS))
    silence.look({}, lambda _: None, NOW)
    limits = silence.report()["limits"]
    assert limits["ASX"] == {"symbol_seconds": 60, "topic_seconds": 10, "open": False}
    assert limits["SIM"]["open"] is True
