"""Whole replays, read by a client that only reads: trades a second, and the worker's memory."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass

import psutil

from tests.bench.measure import CheckFailed
from tests.bench.queries.service import Client, Service

__all__ = ["FORMS", "Replay", "replay"]

FORMS = ("arrow", "ndjson")
SAMPLE_EVERY_S = 0.1
_READ_BYTES = 1024 * 1024
_TAIL_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Replay:
    """One replay from the request to the last byte."""

    form: str
    trades: int
    seconds: float
    bytes: int
    digest: str  # of K2's, over content and order
    rss: list[int]  # bytes, of the worker, from before the request to behind its end

    @property
    def rate(self) -> float:
        return self.trades / self.seconds

    def rss_of(self, first: float, last: float) -> int:
        """The most of a part of the run: 0 is its beginning, 1 its end."""
        return max(self.rss[int(first * (len(self.rss) - 1)) : int(last * len(self.rss)) + 1])


def replay(service: Service, form: str, trades: int) -> Replay:
    """Replay everything, as fast as it goes.

    Raises:
        CheckFailed: it does not say of itself that it is complete, with so many trades.
    """
    with Client(service.url) as client, _Memory(service.pid) as memory:
        buffer, tail, size = memoryview(bytearray(_READ_BYTES)), b"", 0
        began = time.perf_counter()
        with client.open(f"/v1/replay?kind=trades&format={form}") as answer:
            while count := answer.readinto(buffer):
                size += count
                tail = (tail + bytes(buffer[max(0, count - _TAIL_BYTES) : count]))[-_TAIL_BYTES:]
        seconds = time.perf_counter() - began
    completed = re.search(rb'"trades":(\d+).*?"digest":"(sha256:[0-9a-f]{64})"', tail, re.DOTALL)
    if completed is None:
        raise CheckFailed(f"replay, {form}: no replay_completed at its end")
    if int(completed[1]) != trades:
        raise CheckFailed(f"replay, {form}: {int(completed[1])} trades, not {trades}")
    return Replay(form, trades, seconds, size, completed[2].decode(), memory.samples)


class _Memory:
    """Samples the resident set of a process, from `with` to its end."""

    def __init__(self, pid: int) -> None:
        self.samples: list[int] = []
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.samples.append(self._process.memory_info().rss)
            if self._stop.wait(SAMPLE_EVERY_S):
                return
