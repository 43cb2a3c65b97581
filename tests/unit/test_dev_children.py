"""Children: their end is noticed, their stop has a deadline, and the log tells why."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from k2.dev.children import Child, stop_all, supervise
from k2.errors import ChildDied


def child(tmp_path: Path, code: str, name: str = "c") -> Child:
    return Child(name, [sys.executable, "-c", code], os.environ, tmp_path / f"{name}.log")


def started(tmp_path: Path, code: str, name: str = "c") -> Child:
    """Start, and wait for the child's first line."""
    made = child(tmp_path, f"print('up', flush=True)\n{code}", name)
    made.start()
    until = time.monotonic() + 10
    while not made.tail() and time.monotonic() < until:
        time.sleep(0.01)
    return made


def test_death_is_reported_with_exit_code_and_last_20_lines(tmp_path: Path) -> None:
    made = child(tmp_path, "for i in range(30): print('line', i)\nraise SystemExit(3)")
    made.start()
    with pytest.raises(ChildDied, match="exit code 3") as caught:
        supervise([made])
    assert "line 10\n" in str(caught.value)
    assert "line 9\n" not in str(caught.value)


def test_supervise_returns_when_told(tmp_path: Path) -> None:
    made, stop = started(tmp_path, "import time; time.sleep(60)"), threading.Event()
    stop.set()
    supervise([made], stop)
    assert made.stop(5.0) == -signal.SIGTERM


def test_stop_kills_after_the_deadline(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True)\n"
    made = started(tmp_path, deaf + "time.sleep(60)")
    while "deaf" not in made.tail():
        time.sleep(0.01)
    assert made.stop(0.2) == -signal.SIGKILL


def test_stop_all_shares_one_deadline(tmp_path: Path) -> None:
    sleepers = [started(tmp_path, "import time; time.sleep(60)", f"c{i}") for i in range(2)]
    stop_all(sleepers, 5.0)
    assert [made.poll() for made in sleepers] == [-signal.SIGTERM] * 2


def test_missing_program_is_child_died(tmp_path: Path) -> None:
    with pytest.raises(ChildDied, match="cannot start"):
        Child("c", [str(tmp_path / "absent")], {}, tmp_path / "c.log").start()


def test_never_started_stops_quietly(tmp_path: Path) -> None:
    made = child(tmp_path, "")
    assert made.stop(1.0) is None
    assert (made.poll(), made.pid, made.tail()) == (None, None, "")
