"""What pauses a partition, what is kept of its batch, and the operator's word that ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from k2.agents.assemble import Checked, assemble

from k2.errors import BadQuery
from k2.lake.acceptances import accept, paused, resume, resumed
from k2.lake.catalog import ensure_tables, gaps_name, load_table, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source
from k2.schemas import TRADES
from k2.sequence import Rules, SymbolState
from k2.settings import Settings
from k2.transport.fetched import RecordBatch
from tests.by_hand import DECODER, TRADE, fetch, framed, of_values, record

EXCHANGE = TRADE["exchange"]
SOURCE = Source("c", "market.trades.sim", 0)
#: A gap of more than three is critical.
PAUSING = Rules(limits={EXCHANGE: (1, 3)}, pausing=frozenset([EXCHANGE]))
#: Sequences at offsets 100 to 107. 12..19 is missing at 103, 22..29 at 106; 11 comes twice.
SEQUENCES = (7, 10, 11, 20, 11, 21, 30, 31)
BATCH = DECODER.decode(of_values(*(framed({**TRADE, "sequence": s}) for s in SEQUENCES)))

States = dict[tuple[str, str], SymbolState]


def assembled(
    states: States | None = None,
    rules: Rules = PAUSING,
    starts: tuple[int, int, int] = (0, 0, 0),
    passed: Any = (),
) -> Checked:
    return assemble(TRADES, SOURCE, BATCH, states or {}, rules, *starts, starts[0], passed)


def test_the_batch_ends_before_the_record_that_shows_a_critical_gap() -> None:
    """Rows, rejects and states end before it; the ledger has it, and the smaller one before it."""
    checked = assembled()
    assert checked.stop is not None
    assert (checked.stop.offset, checked.stop.missing_first, checked.stop.count) == (103, 12, 8)
    assert checked.records["kafka_offset"].to_pylist() == [100, 101, 102]
    assert checked.rejects.num_rows == 0
    told = checked.gaps.select(["kafka_offset", "severity", "status"]).to_pylist()
    assert [tuple(row.values()) for row in told] == [
        (101, "page", "open"),
        (103, "critical", "open"),
    ]
    assert [state.offset for state in checked.states.values()] == [102]


def test_read_again_it_stops_again_and_the_ledger_is_not_told_again() -> None:
    first = assembled()
    again = assembled(first.states, starts=(103, 103, 104))
    assert again.stop == first.stop
    assert (again.records.num_rows, again.gaps.num_rows) == (0, 0)
    assert again.states == {}


def test_a_resumed_gap_lets_the_rest_in_up_to_the_next_one() -> None:
    """Piece by piece there is what one batch of an exchange that continues has."""
    whole = assembled(rules=Rules(limits=PAUSING.limits))
    assert whole.stop is None
    pieces, passed, states, start = [], set(), States(), 0
    while True:
        checked = assembled(states, starts=(start, start, start and start + 1), passed=passed)
        pieces.append(checked)
        states |= checked.states
        if checked.stop is None:
            break
        passed.add(checked.stop.gap_id)
        start = checked.stop.offset
    assert len(pieces) == 3
    for name in ("records", "rejects", "gaps"):
        joined = pa.concat_tables([getattr(piece, name) for piece in pieces])
        told = joined.drop_columns("ingest_time")
        assert told.equals(getattr(whole, name).drop_columns("ingest_time")), name
    assert states == whole.states


@pytest.mark.parametrize(
    "rules",
    [
        Rules(limits=PAUSING.limits),
        Rules(limits=PAUSING.limits, pausing=frozenset(["OTHER"])),
        Rules(limits={EXCHANGE: (1, 8)}, pausing=PAUSING.pausing),
    ],
    ids=["no policy", "of another exchange", "no more than the limit"],
)
def test_what_is_not_critical_or_not_to_pause_does_not_stop(rules: Rules) -> None:
    assert assembled(rules=rules).stop is None


def test_what_was_let_in_cannot_wait() -> None:
    """Below the records' offset, read again for the states' sake, nothing stops."""
    checked = assembled(starts=(104, 104, 104))
    assert checked.stop is not None
    assert checked.stop.offset == 106


def test_undecodable_records_behind_the_stop_are_left_out() -> None:
    values = [record(i, framed({**TRADE, "sequence": s})) for i, s in ((0, 7), (2, 20))]
    body = values[0] + record(1, None) + values[1] + record(3, None)
    decoded = DECODER.decode(fetch(RecordBatch(100, 3, 4, 0, 0, False, body)))
    checked = assemble(TRADES, SOURCE, decoded, {}, PAUSING, 0, 0, 0, 0)
    assert checked.stop is not None
    assert checked.stop.offset == 102
    assert checked.rejects["kafka_offset"].to_pylist() == [101]


class Lake:
    """Tables in which a partition waits at offset 103, as a worker leaves them."""

    def __init__(self, data: Path) -> None:
        self.settings = Settings(data=data)
        self.catalog = open_catalog(self.settings)
        ensure_tables(self.catalog, self.settings)
        checked = assembled()
        assert checked.stop is not None
        self.stop = checked.stop
        gaps = Sink(self.catalog, gaps_name(self.settings), self.settings)
        gaps.commit(gaps.write(checked.gaps), {}, {SOURCE: 104})
        self.trades = Sink(self.catalog, table_name(self.settings, TRADES), self.settings)
        self.trades.commit(self.trades.write(checked.records), {}, {SOURCE: 103})
        self.lake = self.catalog, self.settings

    def heard(self) -> set[str]:
        return resumed(*self.lake, {self.stop.gap_id: self.stop.seen_at})

    def waiting(self) -> list[str]:
        return [row["gap_id"] for row in paused(*self.lake)]

    def newest(self) -> dict[str, Any]:
        rows = load_table(self.catalog, gaps_name(self.settings)).scan().to_arrow().to_pylist()
        own = [row for row in rows if row["gap_id"] == self.stop.gap_id]
        return max(own, key=lambda row: (row["revision"], row["ingest_time"]))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def test_resume_is_a_row_of_the_finding_which_stays_open(lake: Lake) -> None:
    assert (lake.waiting(), lake.heard()) == ([lake.stop.gap_id], set())
    before = lake.newest()
    (row,) = resume(*lake.lake, [lake.stop.gap_id], "confirmed")
    after = lake.newest()
    assert after["ingest_time"] > before["ingest_time"]
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"operator", "reason", "ingest_time"}
    assert (after["status"], after["severity"]) == ("open", "critical")
    assert row["reason"] == after["reason"] == "confirmed"
    assert (lake.waiting(), lake.heard()) == ([], {lake.stop.gap_id})
    with pytest.raises(BadQuery, match="nothing waits for it"):
        resume(*lake.lake, [lake.stop.gap_id], "again")


def test_acceptance_ends_the_pause_too(lake: Lake) -> None:
    accept(*lake.lake, [lake.stop.gap_id], "cancelled")
    assert (lake.waiting(), lake.heard()) == ([], {lake.stop.gap_id})


def test_nothing_waits_once_its_record_is_in_the_table(lake: Lake) -> None:
    """Also where nobody was asked: the exchange continues."""
    lake.trades.commit([], {SOURCE: 103}, {SOURCE: 104})
    assert lake.waiting() == []
    with pytest.raises(BadQuery, match="nothing waits for it"):
        resume(*lake.lake, [lake.stop.gap_id], "why not")


def test_impossible_words_are_refused(lake: Lake) -> None:
    with pytest.raises(BadQuery, match="feed: no such finding"):
        resume(*lake.lake, [lake.stop.gap_id, "feed"], "both")
    with pytest.raises(BadQuery, match="empty: say why"):
        resume(*lake.lake, [lake.stop.gap_id], " ")
    assert lake.heard() == set()
    assert lake.waiting() == [lake.stop.gap_id]
