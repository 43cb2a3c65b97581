"""The oracle itself: right tables pass, and each fault in them is named, with its numbers."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from pyiceberg.catalog import Catalog

from k2.codec import encode
from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.lake.catalog import ensure_tables, open_catalog, rejects_name, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Move, Source
from k2.registry import open_registry
from k2.schemas import REJECTS, TRADES
from k2.settings import Settings
from k2.topics import ensure_topics
from tests.conftest import Broker
from tests.integration.oracle import Wrong, check, check_topics
from tests.integration.oracle.topic import Topics
from tests.integration.parts import iceberg

pytestmark = pytest.mark.slow

SCHEMA_ID = 1  # the first one in a registry
SYMBOLS, TRADES_SENT = 3, 300
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
Row = dict[str, Any]


@dataclass
class Commit:
    """What one checkpoint of a worker writes: rejects, then trades, each up to `end`."""

    end: int
    trades: list[Row]
    rejects: list[Row]
    moves: list[Move] = field(default_factory=list)


@dataclass
class Day:
    """A day that was sent to a topic of one partition, and the commits that hold it."""

    settings: Settings
    simulation: Simulation
    stream: list[pa.Table]
    source: Source

    def commits(self) -> list[Commit]:
        """Three of them, with each record where it belongs, made anew at every call."""
        rows, seen, highest = [], set[str](), dict[str, int]()
        whole = pa.concat_tables(self.stream)
        buffer, ends = encode(TRADES, whole, SCHEMA_ID)
        values = [bytes(buffer[first:last]) for first, last in pairwise(ends)]
        for offset, sent in enumerate(whole.to_pylist()):
            last = highest.get(sent["symbol"], 0)
            highest[sent["symbol"]] = max(last, sent["sequence"])
            if sent["trade_id"] in seen:
                rows.append(self._reject(sent, offset, values[offset]))
            else:
                seen.add(sent["trade_id"])
                rows.append(self._trade(sent, offset, _verdict(sent["sequence"], last)))
        cuts = [0, len(rows) // 3, 2 * len(rows) // 3, len(rows)]
        return [
            Commit(
                end,
                [row for row in rows[begin:end] if "verdict" in row],
                [row for row in rows[begin:end] if "reason" in row],
            )
            for begin, end in pairwise(cuts)
        ]

    def _place(self, offset: int) -> Row:
        return {
            "kafka_cluster": self.source.cluster,
            "kafka_topic": self.source.topic,
            "kafka_partition": self.source.partition,
            "kafka_offset": offset,
            "ingest_time": NOW,
        }

    def _trade(self, sent: Row, offset: int, verdict: str) -> Row:
        micros = sent["ts_event"] // 1000
        at = datetime.fromtimestamp(micros // 10**6, UTC).replace(microsecond=micros % 10**6)
        times = {"event_time": at, "session": at.date()}
        return {**sent, **times, **self._place(offset), "verdict": verdict}

    def _reject(self, sent: Row, offset: int, value: bytes) -> Row:
        named = {name: sent[name] for name in ("exchange", "symbol", "sequence")}
        return {
            **named,
            **self._place(offset),
            "kafka_time": NOW,
            "reason": "duplicate",
            "detail": "",
            "key": f"SIM.{sent['symbol']}".encode(),
            "value": value,
        }


def _verdict(sequence: int, last: int) -> str:
    if last == 0:
        return "first"
    return "ok" if sequence == last + 1 else "gap" if sequence > last else "late"


class Lake:
    """Both tables in a folder, filled with commits that look at no offsets."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self.catalog: Catalog = open_catalog(settings)
        ensure_tables(self.catalog, settings)
        self.source = source
        self._sinks = [
            (Sink(self.catalog, name, settings), schema)
            for name, schema in (
                (rejects_name(settings), REJECTS),
                (table_name(settings, TRADES), TRADES.table),
            )
        ]

    def add(self, commit: Commit, times: int = 1) -> list[Path]:
        """Name each file `times` times; returns them, those of rejects first."""
        files = []
        for (sink, schema), rows in zip(self._sinks, (commit.rejects, commit.trades), strict=True):
            written = sink.write(pa.Table.from_pylist(rows, schema))
            sink.commit(written * times, {}, {self.source: commit.end}, commit.moves)
            files += [Path(file.file_path.removeprefix("file://")) for file in written]
        return files


@pytest.fixture(scope="module")
def sent(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Day:
    """Sent once: the tests differ in their tables."""
    settings = Settings(
        data=tmp_path_factory.mktemp("oracle"),
        broker=broker.address,
        exchanges=f"oracle{uuid.uuid4().hex}",
        partitions=1,
    )
    ensure_topics(settings)
    topic = TRADES.topic(settings.exchanges)
    simulation = Simulation(5, SYMBOLS, TRADES_SENT, gaps=3, duplicates=4, late=2)
    stream = list(simulation)
    assert produce(stream, topic, settings).count == simulation.journal.sent
    return Day(settings, simulation, stream, Source(broker.cluster_id, topic, 0))


@pytest.fixture
def day(sent: Day, tmp_path: Path) -> Day:
    """The same day with tables of one's own to be filled."""
    registry = (sent.settings.data / "registry.json").read_bytes()
    (tmp_path / "registry.json").write_bytes(registry)
    return replace(sent, settings=replace(sent.settings, data=tmp_path))


@pytest.fixture
def lake(day: Day) -> Iterator[Lake]:
    lake = Lake(day.settings, day.source)
    yield lake
    lake.catalog.close()


def _checked(day: Day) -> None:
    check(day.settings, day.stream, day.simulation.journal)


def test_right_tables_pass(day: Day, lake: Lake) -> None:
    """With gaps, late trades and duplicates in them; each commit holds some of the day."""
    commits = day.commits()
    assert sum(len(commit.rejects) for commit in commits) == day.simulation.journal.duplicates > 0
    for commit in commits:
        assert lake.add(commit)
    _checked(day)


def _lose(commits: list[Commit]) -> None:
    del commits[1].trades[3]


def _double(commits: list[Commit]) -> None:
    commits[1].trades.append(commits[1].trades[3])


def _double_across(commits: list[Commit]) -> None:
    """The same record is a trade and a reject."""
    reject = next(row for commit in commits for row in commit.rejects)
    row = commits[1].trades[3]
    places = {name: value for name, value in row.items() if name.startswith("kafka")}
    commits[1].rejects.append({**reject, **places})


def _invent(commits: list[Commit]) -> None:
    """A row of an offset that the log does not have yet."""
    last = commits[-1]
    last.trades.append({**last.trades[-1], "kafka_offset": last.end, "trade_id": "T0"})
    last.end += 1


def _reprice(commits: list[Commit]) -> None:
    commits[1].trades[3]["price"] += Decimal("0.001")


def _rename(commits: list[Commit]) -> None:
    """Null where something was sent."""
    commits[1].trades[3]["trade_id"] = None


def _spoil(commits: list[Commit]) -> None:
    """One bit of a reject's value."""
    row = next(row for commit in commits for row in commit.rejects)
    row["value"] = row["value"][:-1] + bytes([row["value"][-1] ^ 1])


def _misjudge(commits: list[Commit]) -> None:
    """A gap that nobody reports."""
    row = next(row for c in commits for row in c.trades if row["verdict"] == "gap")
    row["verdict"] = "ok"


def _promise_more(commits: list[Commit]) -> None:
    commits[-1].end += 1


def _promise_less(commits: list[Commit]) -> None:
    """The last commit's rows lie above what it says: they would be written again."""
    commits[-1].end -= 1


def _fall(commits: list[Commit]) -> None:
    """An empty commit in between takes the offset back."""
    commits.insert(2, Commit(commits[0].end, [], []))


def _swap(commits: list[Commit]) -> None:
    """Each row is there once, but a commit holds one of the commit before it."""
    commits[1].trades.append(commits[0].trades.pop())


FAULTS: Mapping[Callable[[list[Commit]], None], tuple[str, int, int]] = {
    _lose: (r"in neither table: {log}@{at}$", 1, 0),
    _double: (r"more than once in the tables: {log}@{at}$", 0, 1),
    _double_across: (r"more than once in the tables: {log}@{at}$", 0, 1),
    _invent: (r"in a table, but not in the topic: {log}@{end}$", 0, 0),
    _reprice: (r"trades: 1 rows changed: {log}@{at}: price [\d.]+, sent [\d.]+$", 0, 0),
    _rename: (r"trades: 1 rows changed: {log}@{at}: trade_id null, sent T\d+$", 0, 0),
    _spoil: (r"rejects: 1 rows changed: {log}@\d+: value ", 0, 0),
    _misjudge: (r"gaps: found only ; wanted only \('S0", 0, 0),
    _promise_more: (r"trades: {log} of \S+: next offset \d+, but .* before {end} and ", 0, 0),
    _promise_less: (r"trades: snapshot \d+: {log} of \S+: next offset \d+, added \d+$", 0, 0),
    _fall: (r"snapshot \d+: {log} of \S+: next offset \d+ after \d+$", 0, 0),
    _swap: (r"trades: snapshot \d+: {log} of \S+: added \d+ after next offset \d+$", 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_a_fault_is_named(day: Day, lake: Lake, fault: Callable[[list[Commit]], None]) -> None:
    """One row or one number is wrong, and nothing else."""
    commits = day.commits()
    named = {
        "log": re.escape(f"{day.source.topic}[0]"),
        "at": commits[1].trades[3]["kafka_offset"],
        "end": commits[-1].end,
    }
    fault(commits)
    for commit in commits:
        lake.add(commit)
    message, lost, doubled = FAULTS[fault]
    with pytest.raises(Wrong, match=message.format(**named)) as caught:
        _checked(day)
    assert (caught.value.lost, caught.value.doubled) == (lost, doubled)


def test_a_deleted_file_is_named_with_its_rows(day: Day, lake: Lake) -> None:
    """Somebody cleaned the warehouse by hand."""
    commits = day.commits()
    files = [lake.add(commit)[-1] for commit in commits]
    files[1].unlink()
    with pytest.raises(Wrong, match=f"files that do not exist: .*{files[1].name}") as caught:
        _checked(day)
    assert caught.value.lost == len(commits[1].trades)


def test_a_file_named_twice_is_named_with_its_rows(day: Day, lake: Lake) -> None:
    """Readers would get its rows twice."""
    first, *rest = day.commits()
    *_, file = lake.add(first, times=2)
    for commit in rest:
        lake.add(commit)
    with pytest.raises(Wrong, match=f"more than once: .*{file.name}") as caught:
        _checked(day)
    assert caught.value.doubled == len(first.trades)


@pytest.mark.parametrize("kind", ["-m0.avro", "snap-"])
def test_a_deleted_manifest_is_named(day: Day, lake: Lake, kind: str) -> None:
    """A manifest, or the list of them."""
    for commit in day.commits():
        lake.add(commit)
    table = iceberg(day.settings, "trades")
    snapshot = table.current_snapshot()
    named = [snapshot.manifest_list, *(m.manifest_path for m in snapshot.manifests(table.io))]
    gone = next(Path(path.removeprefix("file://")) for path in named if kind in path)
    gone.unlink()
    with pytest.raises(Wrong, match=f"trades: files that do not exist: .*{gone.name}"):
        _checked(day)


def test_a_move_is_no_fall(day: Day, lake: Lake) -> None:
    """An operator took the offset back, before anything was written again."""
    commits = day.commits()
    end, back = commits[1].end, commits[0].end
    moves = [
        Move(day.source, here, there, "op", NOW.isoformat(), "why")
        for here, there in ((end, back), (back, end))
    ]
    commits[2:2] = [Commit(back, [], [], moves[:1]), Commit(end, [], [], moves[1:])]
    for commit in commits:
        lake.add(commit)
    _checked(day)


def test_a_log_is_read_to_its_end_whoever_wrote_it(day: Day, lake: Lake) -> None:
    """Also behind the end that Tansu names; and what no worker has read is lost.

    Nor may a worker make trades of what is none.
    """
    settings = replace(day.settings, exchanges=f"foreign{uuid.uuid4().hex}")
    ensure_topics(settings)
    check_topics(settings)
    topic = TRADES.topic(settings.exchanges)
    assert open_registry(settings).register(f"{topic}-value", TRADES.avro) == SCHEMA_ID
    producer = Producer({"bootstrap.servers": settings.broker, "log_level": 0})
    for number in range(3):
        producer.produce(topic, b"none", str(number).encode(), partition=0)
        assert producer.flush(30) == 0  # a batch each: what Tansu says of the end is behind
    found = Topics.read(settings)
    assert found.bounds == {(topic, 0): (0, 3)}
    assert found.records["key"].to_pylist() == [b"0", b"1", b"2"]
    with pytest.raises(Wrong, match=r"^3 lost, 0 doubled: in neither table"):
        check_topics(settings)
    trades = [{**row, "kafka_topic": topic} for row in day.commits()[0].trades[:3]]
    for offset, row in enumerate(trades):
        row["kafka_offset"] = offset
    lake.source = day.source._replace(topic=topic)
    lake.add(Commit(3, trades, []))
    with pytest.raises(Wrong, match=r"@[012]: in trades, but its value is none: .*magic byte 110"):
        check_topics(settings)


def test_a_topic_that_is_gone_is_no_success(day: Day, lake: Lake) -> None:
    """Else nothing would be compared."""
    with pytest.raises(Wrong, match=r"no such topic at .*: market\.trades\.gone"):
        check_topics(replace(day.settings, exchanges="gone"))
