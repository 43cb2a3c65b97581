"""Fresh queries of two workers under load: every answer exact, whatever is being committed."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from k2.feeds.simulate import Simulation
from k2.schemas import TRADES
from k2.settings import Settings
from tests.integration.parts import Feed, Worker, committed, get, rows_of, until, verify

pytestmark = pytest.mark.slow

SYMBOLS = 20
ROWS = 100_000
RATE = 5_000.0
TOPIC = TRADES.topic("SIM")

#: By partition the next offset of an answer, if its offsets have no hole.
Ends = dict[int, int]


@dataclass
class Asked:
    """What a thread's answers were."""

    statuses: Counter[int] = field(default_factory=Counter)
    why: Counter[str] = field(default_factory=Counter)
    ends: Ends = field(default_factory=dict)
    thread: Future[None] = field(default_factory=Future)
    ahead: int = 0  # answers with rows that were in no snapshot when they were looked for before

    def take(self, table: pa.Table) -> None:
        """No offset missing, none twice, and nothing that an answer before had is gone."""
        for partition, end in _ends(table).items():
            assert end >= self.ends.get(partition, 0), (partition, end, self.ends)
            self.ends[partition] = end


def _ends(table: pa.Table) -> Ends:
    ends = {}
    partitions, offsets = (table[c].to_numpy() for c in ("kafka_partition", "kafka_offset"))
    for partition in np.unique(partitions).tolist():
        found = np.sort(offsets[partitions == partition])
        holes = np.flatnonzero(found != np.arange(len(found)))
        assert not len(holes), f"[{partition}]: {found[holes[0]]} at {holes[0]} of {len(found)}"
        ends[partition] = len(found)
    return ends


def _fresh(url: str, **more: str) -> tuple[int, dict[str, str], bytes]:
    return get(f"{url}/v1/trades?{urlencode({'fresh': 'true', 'format': 'arrow', **more})}")


def _table(body: bytes) -> pa.Table:
    return pa.ipc.open_stream(io.BytesIO(body)).read_all()


def _ask(workers: list[Worker], stop: threading.Event, asked: Asked) -> None:
    """Ask the workers in turn until told to stop."""
    while not stop.is_set():
        for worker in workers:
            began = time.monotonic()
            below = committed(worker.settings)
            try:
                status, headers, body = _fresh(worker.url)
            except OSError:
                asked.statuses[0] += 1  # that worker has ended
                continue
            asked.statuses[status] += 1
            if status == 200:
                assert headers["X-K2-Fresh"] == "true"
                table = _table(body)
                asked.take(table)
                asked.ahead += table.num_rows > below
            else:
                assert (status, headers.get("Retry-After")) == (503, "1"), body
                asked.why[body.decode()[-60:]] += 1
            # An answer of everything is work that the workers then wait for.
            stop.wait(time.monotonic() - began)


@contextmanager
def _asking(workers: list[Worker]) -> Iterator[Asked]:
    """Fresh queries of everything, by one thread, for as long as the context lasts."""
    asked, stop = Asked(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        thread = asked.thread = pool.submit(_ask, workers, stop, asked)
        try:
            yield asked
        finally:
            stop.set()
        thread.result()


@contextmanager
def _two(lake: Settings) -> Iterator[list[Worker]]:
    with Worker(lake, "a") as one, Worker(lake, "b") as two:
        for worker in (one, two):
            worker.await_ready()
        yield [one, two]


def _shared(workers: list[Worker]) -> None:
    for worker in workers:
        until(worker.ingested, 60, lambda: f"a share of the trades:\n{worker.tail()}")  # noqa: B023


def test_every_fresh_answer_is_exact_while_trades_are_committed(lake: Settings) -> None:
    """Per partition no hole and no repetition, never less than before; bars are those of trades."""
    whole = pa.concat_tables(Simulation(3, SYMBOLS, 10 * ROWS))  # for as long as it takes
    symbol = whole["symbol"][0].as_py()
    with _two(lake) as workers:
        with Feed([whole], TOPIC, lake, RATE) as feed, _asking(workers) as asked:
            _shared(workers)
            bars = 0
            while not (asked.statuses[200] > 20 and asked.ahead > 5 and bars > 5):
                assert not feed.done.done(), f"{bars} bars, {asked}"
                assert not asked.thread.done(), f"{bars} bars, {asked}"
                bars += _bars_are_those_of_trades(workers[bars % 2], symbol)
            feed.stop()
            count = feed.done.result().count
        assert (asked.statuses[200], asked.statuses.total()) == (asked.statuses.total(),) * 2
        # All that was produced is seen at once, whether or not it is committed.
        until(lambda: _table(_fresh(workers[0].url)[2]).num_rows == count, 30, "all fresh")
        until(lambda: committed(lake) == count, 30, "all committed")
        for worker in workers:
            worker.terminate()
    verify(lake)


def _bars_are_those_of_trades(worker: Worker, symbol: str) -> bool:
    """Bars of a span that ends before the newest trade, which therefore changes no more."""
    status, _, body = _fresh(worker.url, symbol=symbol)
    assert status == 200, body
    trades = _table(body)
    if not trades.num_rows:
        return False
    assert pc.all(pc.equal(trades["symbol"], symbol)).as_py()
    sequences = trades["sequence"].to_numpy()
    assert (np.diff(sequences) == 1).all()
    end = pc.max(trades["ts_event"]).as_py()
    query = {"symbol": symbol, "interval": "1s", "end": str(end), "fresh": "true"}
    bars = rows_of(f"{worker.url}/v1/bars?{urlencode(query)}")
    before = trades.filter(pc.less(trades["ts_event"], end))
    starts = [ts // 1_000_000_000 * 1_000_000_000 for ts in before["ts_event"].to_pylist()]
    counted = Counter(starts)
    assert {bar["start"]: bar["trades"] for bar in bars} == dict(counted)
    volumes: defaultdict[int, Decimal] = defaultdict(Decimal)
    for start, size in zip(starts, before["size"].to_pylist(), strict=True):
        volumes[start] += size
    assert {bar["start"]: Decimal(bar["volume"]) for bar in bars} == dict(volumes)
    return True


def test_while_a_worker_leaves_answers_are_exact_or_refused(lake: Settings) -> None:
    """Stopped, started, killed: 503 with Retry-After, or nothing missing, twice or taken back."""
    whole = pa.concat_tables(Simulation(4, SYMBOLS, 10 * ROWS))  # for as long as it takes
    with _two(lake) as (staying, going):
        with Feed([whole], TOPIC, lake, RATE) as feed, _asking([staying, going]) as asked:
            _shared([staying, going])
            going.terminate()
            _await_answers(staying, asked)
            going.start()
            going.await_ready()
            _await_answers(staying, asked)
            going.kill()
            assert not feed.done.done(), "not in mid-stream"
            _await_answers(staying, asked)
            feed.stop()
            count = feed.done.result().count
            until(lambda: sum(asked.ends.values()) == count, 60, lambda: f"{count}: {asked}")
        assert set(asked.statuses) <= {0, 200, 503}
        assert asked.statuses[503] > 0, "no answer was asked for during a rebalance"
        assert asked.ahead > 5, "no answer had anything that was not committed"
        until(lambda: committed(lake) == count, 60, "all committed")
        staying.terminate()
    verify(lake)


def _await_answers(worker: Worker, asked: Asked) -> None:
    """Until the group has settled and some answers more were right."""
    until(lambda: _fresh(worker.url)[0] == 200, 60, lambda: f"an answer:\n{worker.tail()}")
    enough = asked.statuses[200] + 5

    def there() -> bool:
        if asked.thread.done():
            asked.thread.result()  # an answer was wrong
        return asked.statuses[200] >= enough

    until(there, 60, lambda: f"answers: {asked}")
