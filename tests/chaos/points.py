"""Fault points: named places in a worker at which it dies, fails or waits.

K2 itself knows nothing of them. A worker started as `python -m tests.chaos.worker` has the methods
at those places wrapped; every other worker runs the code as it is installed.
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faust.stores.rocksdb
import pyarrow.parquet as pq
from k2.agents.ingest import Ingest
from k2.tables import symbols
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import PyArrowFile
from pyiceberg.table import Table
from pyiceberg.table.update.snapshot import _MergeAppendFiles

from k2.lake.commit import Sink
from k2.transport.consumer import BatchConsumer

__all__ = ["ACTIONS", "DOWN_S", "POINTS", "arm"]

DOWN_S = 60.0
_down_since = 0.0
#: The one point at which a commit of the gap ledger counts; all others are of the other tables.
_LEDGER = "after the ledger's swap"

#: Name: (owner, method, before or after it) in every kind of lake, in the order of a batch's way.
#: What a REST catalog writes for a swap it writes by itself: there the call is where it begins.
POINTS: dict[str, tuple[tuple[Any, str, str], ...]] = {
    "after fetch": ((Ingest, "put", "before"),),
    "after sequence check": ((Ingest, "_accept", "before"),),
    "mid-Parquet": ((pq.ParquetWriter, "write_table", "after"),),
    "after Parquet": ((Sink, "write", "after"),),
    "after manifest": ((_MergeAppendFiles, "commit", "after"),),
    "before swap": (
        (SqlCatalog, "_write_metadata", "after"),
        (RestCatalog, "commit_table", "before"),
    ),
    "after swap": (
        (SqlCatalog, "commit_table", "after"),
        (RestCatalog, "commit_table", "after"),
    ),
    "after the ledger's swap": (
        (SqlCatalog, "commit_table", "after"),
        (RestCatalog, "commit_table", "after"),
    ),
    "mid-table-flush": ((symbols, "_put", "after"),),
    "after table flush": ((symbols, "checkpoint", "after"),),
    "before ack": ((BatchConsumer, "durable", "before"),),
    "after ack": ((BatchConsumer, "commit_and_end_transactions", "after"),),
    "in recovery": ((faust.stores.rocksdb.Store, "apply_changelog_batch", "after"),),
    "at assignment": ((symbols, "load", "after"),),
    "before drain": ((Ingest, "drain", "before"),),
    "after drain": ((Ingest, "drain", "after"),),
    "at file": ((PyArrowFile, "create", "before"),),
    "at swap": (
        (SqlCatalog, "commit_table", "before"),
        (RestCatalog, "commit_table", "before"),
    ),
}


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _conflict() -> None:
    raise CommitFailedException("another writer was first")


def _lost_answer() -> None:
    raise ConnectionError("the catalog's answer was lost")


def _slow() -> None:
    time.sleep(2.0)


def _hang() -> None:
    time.sleep(600.0)


def _down() -> None:
    """For a minute from the first time on."""
    global _down_since
    _down_since = _down_since or time.monotonic()
    if time.monotonic() - _down_since < DOWN_S:
        raise ConnectionError("the catalog is down")


#: What happens there: an end, a stop, an error that the worker has to get over, or a wait.
ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _kill,
    "freeze": _freeze,
    "disk full": _disk_full,
    "conflict": _conflict,
    "lost answer": _lost_answer,
    "slow": _slow,
    "hang": _hang,
    "down": _down,
}


def arm(point: str, first: int, times: int, action: str, mark: Path) -> None:
    """Do `action` from the `first` time (from 1) on that the point is passed, `times` times.

    Each of them appends a line to `mark`, before it happens.
    """
    act = ACTIONS[action]
    passed = 0

    def hit(args: tuple[Any, ...]) -> None:
        nonlocal passed
        if _of_ledger(args) != (point == _LEDGER):
            return
        passed += 1
        if first <= passed < first + times:
            with mark.open("a") as file:
                file.write(f"{passed}\n")
            act()

    for owner, name, where in POINTS[point]:
        _wrap(owner, name, where, hit)


def _of_ledger(args: tuple[Any, ...]) -> bool:
    """Whether a call of a catalog is about the gap ledger's table: a handle, or a file of it."""
    if any(isinstance(each, Table) and each.name()[-1] == "gaps" for each in args):
        return True
    return any(isinstance(each, str) and "/gaps/metadata/" in each for each in args)


def _wrap(owner: Any, name: str, where: str, hit: Callable[[tuple[Any, ...]], None]) -> None:
    stock = getattr(owner, name)
    if inspect.iscoroutinefunction(stock):

        @functools.wraps(stock)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            if where == "before":
                hit(args)
                return await stock(*args, **kwargs)
            result = await stock(*args, **kwargs)
            hit(args)
            return result

    else:

        @functools.wraps(stock)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if where == "before":
                hit(args)
                return stock(*args, **kwargs)
            result = stock(*args, **kwargs)
            hit(args)
            return result

    static = isinstance(inspect.getattr_static(owner, name), staticmethod)
    setattr(owner, name, staticmethod(wrapped) if static else wrapped)
