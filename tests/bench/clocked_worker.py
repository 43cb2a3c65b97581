"""`k2 worker` that notes what its checkpoints of what is known of symbols cost.

Processor time of the event loop's thread, at every step of what only these need: which segments are
dirty, packing, RocksDB, Faust's buffer, aiokafka's producer down to the socket (without faults in
the stream nobody else produces), deliveries; and of RocksDB's own threads. By itself, of the
threads in which what is known live is merged and packed. Not seen: reading the broker's answers off
the socket, a hundred bytes a request.

Not every checkpoint writes what is known live. So it is all of them together that say something,
with the one at the worker's end, which writes what the others left.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from aiokafka.producer.sender import Sender
from faust.topics import Topic
from faust.transport.producer import ProducerBuffer
from k2.agents.assignment import Partition
from k2.agents.writer import Writer
from k2.tables.segments import Segments

from k2.cli import main
from k2.live.partition import Live

__all__: list[str] = []


class Clock:
    """Adds up the threads' processor time within the functions that it is put around."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._adding = threading.Lock()
        self._of_thread = threading.local()

    def run(self, call: Callable[[], Any]) -> Any:
        if getattr(self._of_thread, "runs", False):
            return call()
        self._of_thread.runs, began = True, time.thread_time()
        try:
            return call()
        finally:
            with self._adding:
                self.seconds += time.thread_time() - began
            self._of_thread.runs = False

    def around(self, owner: Any, name: str) -> None:
        stock = getattr(owner, name)

        @functools.wraps(stock)
        def timed(*args: Any, **kwargs: Any) -> Any:
            return self.run(lambda: stock(*args, **kwargs))

        setattr(owner, name, timed)

    def around_steps(self, owner: Any, name: str) -> None:
        """Of a coroutine: what others do while it waits is not its own."""
        stock = getattr(owner, name)

        @functools.wraps(stock)
        async def timed(*args: Any, **kwargs: Any) -> Any:
            return await _Steps(self, stock(*args, **kwargs))

        setattr(owner, name, timed)


class _Steps:
    def __init__(self, clock: Clock, coroutine: Any) -> None:
        self._clock, self._coroutine = clock, coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        step = functools.partial(self._coroutine.send, None)
        while True:
            try:
                waited_for = self._clock.run(step)
            except StopIteration as done:
                return done.value
            try:
                yield waited_for
                step = functools.partial(self._coroutine.send, None)
            except BaseException as exc:
                step = functools.partial(self._coroutine.throw, exc)


def rocksdb_seconds() -> float:
    """Processor time of the threads in which RocksDB writes and merges its files."""
    ticks = 0
    for task in Path("/proc/self/task").iterdir():
        name, _, rest = (task / "stat").read_text().rpartition(")")
        if "(rocksdb:" in name:
            ticks += sum(map(int, rest.split()[11:13]))  # user and system
    return ticks / os.sysconf("SC_CLK_TCK")


def note_checkpoints(clock: Clock, live: Clock, file: Path) -> None:
    """Append a line (JSON) after every checkpoint; seconds are those since the start."""
    stock = Writer.checkpoint

    @functools.wraps(stock)
    async def noted(self: Writer, owned: Any, segments: Any, assigned: Any) -> None:
        await stock(self, owned, segments, assigned)
        seen = {
            "seconds": clock.seconds + rocksdb_seconds(),
            "live_seconds": live.seconds,
            "segments": sum(len(changed) for changed, _ in segments.values()),
            "segments_known": sum(count for _, count in segments.values()),
            "symbols": sum(len(p.sequences.states) for p, _ in owned.values()),
        }
        with file.open("a") as out:
            out.write(json.dumps(seen) + "\n")

    Writer.checkpoint = noted  # type: ignore[method-assign]


if __name__ == "__main__":
    clock = Clock()
    clock.around(Segments, "update")
    clock.around(Partition, "take_segments")
    clock.around(Topic, "_on_published")
    clock.around_steps(Writer, "checkpoint")
    clock.around_steps(ProducerBuffer, "_send_pending")
    clock.around_steps(Sender, "_sender_routine")
    clock.around_steps(Sender, "_send_produce_req")
    live = Clock()
    live.around(Live, "writing")
    live.around(Live, "merged")  # before it is written
    note_checkpoints(clock, live, Path(os.environ["BENCH_CHECKPOINTS"]))
    main()
