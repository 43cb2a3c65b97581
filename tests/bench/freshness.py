"""How long a trade takes from its producer to an answer, under load: fresh and committed.

Two workers read a stream of a steady rate. Beside it a producer of its own, set as the feeds' are,
sends a trade of one more symbol ten times a second; a client asks the workers in turn for that
symbol, over and over, until it sees it. So a figure holds the producer's linger (20 ms), broker,
fetch, decode and check, for committed trades the wait for the flush, and the time of an answer.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlencode

import orjson
import pyarrow as pa

from k2.dev.broker import free_port
from k2.dev.stack import Stack
from k2.feeds.producer import produce
from k2.schemas import TRADES
from k2.settings import Settings
from tests.bench.measure import CheckFailed
from tests.bench.workload import EXCHANGE

__all__ = ["WAYS", "Freshness", "as_lines", "measure"]

WAYS = ("fresh", "committed")
WORKERS = 2
SYMBOL = "MARK"
MARK_EVERY_S = 0.1
WARM_UP_S = 3.0
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Freshness:
    """Of one way of asking; times in ms."""

    way: str
    trades: int
    p50_ms: float  # from the producer's call to the end of the first answer with the trade
    p99_ms: float
    answer_ms: float  # of one answer, median
    rate: float  # trades/s of the stream


def measure(folder: Path, rate: int, seconds: float, symbols: int, seed: int) -> list[Freshness]:
    """Ask in each way for `seconds`, while `rate` trades a second are produced, or as many as go.

    Raises:
        CheckFailed: a trade was not seen.
    """
    settings = Settings(data=folder, port=free_port(), exchanges=EXCHANGE)
    with Stack(settings, WORKERS, embedded=True, tell=lambda line: None) as stack:
        found = []
        for number, way in enumerate(WAYS):
            with _Feed(stack.settings, rate, seconds, symbols, seed + number) as feed:
                time.sleep(WARM_UP_S)
                marks = _Marks(number * 1_000_000)
                answers = _ask(stack, way, marks, seconds)
                reached = feed.finish()
            cuts = quantiles(marks.waits_ms, n=100)
            times = cuts[49], cuts[98], median(answers)
            found.append(Freshness(way, len(marks.waits_ms), *times, reached))
    return found


class _Feed:
    """`k2 simulate` as a process of its own, so that neither it nor the client is held up."""

    def __init__(
        self, settings: Settings, rate: int, seconds: float, symbols: int, seed: int
    ) -> None:
        trades = round(rate * (seconds + WARM_UP_S))
        # A day of its own a seed: its sequences are not those of another.
        day = f"2026-01-{seed % 28 + 1:02d}"
        options = ["--trades", trades, "--rate", rate, "--symbols", symbols, "--seed", seed]
        argv = [sys.executable, "-m", "k2", "simulate", "--json", "--date", day]
        base = {name: value for name, value in os.environ.items() if not name.startswith("K2_")}
        own = {f"K2_{f.name.upper()}": str(getattr(settings, f.name)) for f in fields(Settings)}
        self._process = subprocess.Popen(
            [*argv, *map(str, options)],
            env=base | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> _Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def finish(self) -> float:
        """Wait for its end; the trades a second that it reached."""
        out, _ = self._process.communicate(timeout=PATIENCE_S)
        if self._process.returncode:
            raise CheckFailed(f"k2 simulate: exit code {self._process.returncode}")
        done = orjson.loads(out)
        return float(done["count"] / done["seconds"])


@dataclass
class _Marks:
    """Trades of the one symbol: when each was produced, and how long until it was seen."""

    first: int  # sequence
    sent: list[tuple[int, float]] = field(default_factory=list)  # ts_event, monotonic s
    waits_ms: list[float] = field(default_factory=list)

    def produce(self, stop: threading.Event) -> Iterator[pa.Table]:
        while not stop.wait(MARK_EVERY_S):
            now = time.time_ns()
            row = {
                "exchange": EXCHANGE,
                "symbol": SYMBOL,
                "sequence": self.first + len(self.sent),
                "ts_event": now,
                "ts_recv": now,
                "price": Decimal(1),
                "size": Decimal(1),
                "side": "NONE",
            }
            table = pa.Table.from_pylist([row], TRADES.columns)
            self.sent.append((now, time.monotonic()))
            yield table

    @property
    def waiting_ns(self) -> int | None:
        """When the oldest happened that has not been seen; None: all were."""
        seen = len(self.waits_ms)
        return self.sent[seen][0] if seen < len(self.sent) else None

    def take(self, sequences: list[int], now: float) -> None:
        """Note what an answer shows that none did before."""
        for sequence in sequences:
            number = len(self.waits_ms)
            if sequence != self.first + number:
                raise CheckFailed(f"{SYMBOL}: {sequence} seen, not {self.first + number}")
            self.waits_ms.append(1000 * (now - self.sent[number][1]))


def _ask(stack: Stack, way: str, marks: _Marks, seconds: float) -> list[float]:
    """Produce and ask for `seconds`, then until all was seen; the time of each answer in ms."""
    stop, times = threading.Event(), []
    end = time.monotonic() + seconds
    topic = TRADES.topic(EXCHANGE)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(produce, marks.produce(stop), topic, stack.settings)
        try:
            while time.monotonic() < end or marks.waiting_ns is not None:
                if time.monotonic() > end + PATIENCE_S:
                    raise CheckFailed(f"{way}: {len(marks.waits_ms)} of {len(marks.sent)} seen")
                if time.monotonic() > end:
                    stop.set()
                if marks.waiting_ns is None:
                    time.sleep(0.001)
                    continue
                began = time.monotonic()
                sequences = _answer(stack.views[len(times) % WORKERS], way, marks.waiting_ns)
                now = time.monotonic()
                marks.take(sequences, now)
                times.append(1000 * (now - began))
        finally:
            stop.set()
        sending.result()
    return times


def _answer(url: str, way: str, start_ns: int) -> list[int]:
    """Sequences of the symbol from a time on."""
    query = {"symbol": SYMBOL, "start": start_ns, "format": "arrow"}
    if way == "fresh":
        query["fresh"] = "true"
    with urllib.request.urlopen(f"{url}/v1/trades?{urlencode(query)}", timeout=10) as answer:
        rows = pa.ipc.open_stream(io.BytesIO(answer.read())).read_all()
    found: list[int] = rows["sequence"].to_pylist()
    return found


def as_lines(found: list[Freshness]) -> list[str]:
    """The part of the report; empty if nothing was measured."""
    if not found:
        return []
    return [
        f"Freshness: from producer to answer, {WORKERS} workers, one symbol polled beside "
        f"{min(each.rate for each in found):,.0f} trades/s",
        *(
            f"  {each.way:<10} p50 {each.p50_ms:,.0f} ms, p99 {each.p99_ms:,.0f} ms "
            f"({each.trades} trades; an answer takes {each.answer_ms:,.0f} ms)"
            for each in found
        ),
    ]
