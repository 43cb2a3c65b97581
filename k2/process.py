"""What a worker does to its process: its memory as it starts, and its end."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading

import pyarrow as pa

from k2.settings import Settings

__all__ = ["ended", "ending", "settle"]

#: On top of the flush deadline; below the stack's own margin, which ends in SIGKILL without a word.
STOP_MARGIN_S = 10.0


def settle() -> None:
    """Make the memory ready, once all is imported."""
    # Batches are large and short-lived: the default pool gives their pages back and faults
    # them in again, which is a third of a worker's processor time.
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    # Faust collects garbage at every rebalance; what was imported is none.
    gc.collect()
    gc.freeze()


def ending(settings: Settings) -> None:
    """Say that the worker stops; from here on a second signal, or the deadline, ends the process.

    A worker that neither works nor ends is not restarted. Behind the stop come threads, of which a
    query's may hang with its request; so the deadline goes on until the process has ended.
    """
    print("k2: stopping; a second signal ends it at once", file=sys.stderr, flush=True)
    with contextlib.suppress(ValueError):  # not in the main thread: nobody signals us
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _leave)
    deadline_s = settings.shutdown_timeout_ms / 1000.0 + STOP_MARGIN_S
    last_resort = threading.Timer(deadline_s, _end, [deadline_s])
    last_resort.daemon = True
    last_resort.start()


def ended(code: int) -> None:
    """The worker has stopped: let the process end with this code when the interpreter does."""
    atexit.register(_exit, code)


def _leave(number: int, frame: object) -> None:
    os._exit(128 + number)


def _exit(code: int) -> None:
    # Of the exit handlers this is the first. PyArrow's would wait for requests to S3 that hang, and
    # DuckDB's bindings would report all that the garbage collector was told to leave as leaked.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end(deadline_s: float) -> None:
    # Not by logging: whatever hangs may hold its lock.
    print(f"k2: not stopped within {deadline_s:g} s: ending the process", file=sys.stderr)
    sys.stderr.flush()
    faulthandler.dump_traceback()
    os._exit(1)
