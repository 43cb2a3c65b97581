"""The table that is asked: simulated trading days, committed as a worker would have done it."""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2.feeds.simulate import Simulation
from k2.lake.catalog import ensure_tables, load_table, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.offsets import Source
from k2.schemas import TRADES
from k2.settings import Settings
from tests.bench.measure import CheckFailed
from tests.bench.wire import PARTITIONS
from tests.bench.workload import EXCHANGE

__all__ = ["Lake", "Plan", "make"]

FIRST_SESSION = dt.date(2024, 3, 11)  # a Monday
#: Of no broker that runs: the worker has nothing to read behind these offsets.
CLUSTER = "bench"
WRITERS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What is made. Equal plans give equal rows in equal files."""

    trades: int
    seed: int = 1
    symbols: int = 100
    sessions: int = 5
    commit_rows: int = 50_000  # a worker's commits, one a second, beside 50,000 trades/s

    @property
    def dates(self) -> list[dt.date]:
        return [FIRST_SESSION + dt.timedelta(days=day) for day in range(self.sessions)]

    @property
    def session_trades(self) -> int:
        return self.trades // self.sessions


@dataclass(frozen=True, slots=True)
class Lake:
    """A table of trades as it was made."""

    plan: Plan
    rows: int
    commits: int
    paths: list[str]  # of the newest snapshot's data files
    bytes: int  # of them
    snapshots: int  # that the table still has


def make(settings: Settings, plan: Plan) -> Lake:
    """Fill the table of trades through K2's own sink.

    Raises:
        CheckFailed: the table has not all rows.
    """
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    name = table_name(settings, TRADES)
    sink = Sink(catalog, name, settings)
    log = _Log(plan.symbols)
    days = ((date, _day(plan, date)) for date in plan.dates)
    batches = chain.from_iterable(
        map(partial(log.rows, date), _cut(chunks, plan.commit_rows)) for date, chunks in days
    )
    told: Mapping[Source, int | None] = dict.fromkeys(log.sources)
    commits = 0
    writing: deque[tuple[Future[list], Mapping[Source, int]]] = deque()  # type: ignore[type-arg]

    def commit() -> None:
        nonlocal told, commits
        files, following = writing.popleft()
        sink.commit(files.result(), told, following)
        told = following
        commits += 1

    with ThreadPoolExecutor(WRITERS) as pool:
        for rows in batches:
            writing.append((pool.submit(sink.write, rows), log.following()))
            if len(writing) > WRITERS:
                commit()
        while writing:
            commit()

    table = load_table(catalog, name)
    files = [task.file for task in table.scan().plan_files()]
    found = sum(file.record_count for file in files)
    if found != plan.session_trades * plan.sessions:
        raise CheckFailed(f"{name}: {found} rows, wanted {plan.session_trades * plan.sessions}")
    return Lake(
        plan,
        found,
        commits,
        [file.file_path.removeprefix("file://") for file in files],
        sum(file.file_size_in_bytes for file in files),
        len(table.metadata.snapshots),
    )


def _day(plan: Plan, date: dt.date) -> Iterable[pa.Table]:
    """A day without faults; each of a seed of its own."""
    seed = plan.seed * 1000 + plan.dates.index(date)
    return Simulation(seed, plan.symbols, plan.session_trades, EXCHANGE, date)


def _cut(chunks: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The rows of chunks in pieces of `size`; the last may be smaller."""
    held: pa.Table | None = None
    for chunk in chunks:
        held = chunk if held is None else pa.concat_tables([held, chunk])
        while held.num_rows >= size:
            yield held.slice(0, size)
            held = held.slice(size)
    if held is not None and held.num_rows:
        yield held


class _Log:
    """Where each trade would have been in Kafka."""

    def __init__(self, symbols: int) -> None:
        self.sources = [Source(CLUSTER, TRADES.topic(EXCHANGE), p) for p in range(PARTITIONS)]
        self._next = np.zeros(PARTITIONS, np.int64)
        self._names = pa.array([f"S{number:05d}" for number in range(1, symbols + 1)])

    def following(self) -> dict[Source, int]:
        """The next offset of each partition."""
        return dict(zip(self.sources, self._next.tolist(), strict=True))

    def rows(self, session: dt.date, chunk: pa.Table) -> pa.Table:
        """Rows of the table, n of TRADES.columns: ascending by offset in each partition."""
        count = chunk.num_rows
        numbers = pc.index_in(chunk["symbol"], self._names).to_numpy()
        partitions = (numbers % PARTITIONS).astype(np.int32)
        offsets = np.empty(count, np.int64)
        for number in range(PARTITIONS):
            (own,) = np.nonzero(partitions == number)
            offsets[own] = self._next[number] + np.arange(len(own))
            self._next[number] += len(own)
        times = pa.array(chunk["ts_event"].to_numpy() // 1000).cast(pa.timestamp("us", "UTC"))
        first = pc.equal(chunk["sequence"], 1)
        source = self.sources[0]
        columns = {name: chunk[name] for name in chunk.column_names} | {
            "session": pa.repeat(pa.scalar(session), count),
            "event_time": times,
            "verdict": pc.if_else(first, "first", "ok"),
            "kafka_cluster": pa.repeat(source.cluster, count),
            "kafka_topic": pa.repeat(source.topic, count),
            "kafka_partition": pa.array(partitions),
            "kafka_offset": pa.array(offsets),
            "ingest_time": pa.repeat(times[-1], count),
        }
        names = TRADES.table.names
        return pa.table([columns[name] for name in names], schema=TRADES.table)
