"""Child processes: start, watch, stop, and what their logs said last."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from k2.errors import ChildDied

__all__ = ["Child", "stop_all", "supervise"]

TAIL_LINES = 20
TAIL_BYTES = 64 * 1024
POLL_S = 0.1


class Child:
    """One process in a process group of its own; stdout and stderr go to `log`.

    Its own group: Ctrl-C in the terminal reaches the parent only, which then stops the
    children in the order that loses nothing.
    """

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._argv = list(argv)
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it; `env` is its whole environment. The log is appended to.

        Raises:
            ChildDied: the program cannot be executed.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            try:
                self._process = subprocess.Popen(
                    self._argv,
                    env=self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
            except OSError as exc:
                raise ChildDied(f"{self.name}: cannot start {self._argv[0]}: {exc}") from exc

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal), or None while it runs or before start."""
        return self._process.poll() if self._process else None

    def signal(self, number: int) -> None:
        """Send a signal to its whole group; nothing happens when it has ended."""
        if self._process is not None and self._process.poll() is None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return

    def stop(self, deadline_s: float) -> int | None:
        """SIGTERM, and SIGKILL after `deadline_s`; return the exit code (None: never started)."""
        self.signal(signal.SIGTERM)
        return self._wait(deadline_s)

    def _wait(self, deadline_s: float) -> int | None:
        if self._process is None:
            return None
        try:
            return self._process.wait(max(deadline_s, 0.0))
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            return self._process.wait()

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the last lines of its log, empty when there is none."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def check(self) -> None:
        """Raise when it has ended.

        Raises:
            ChildDied: with exit code, log file and the log's last 20 lines.
        """
        code = self.poll()
        if code is not None:
            how = f"exit code {code}" if code >= 0 else f"signal {-code}"
            raise ChildDied(
                f"{self.name} ended by itself ({how}); end of {self.log}:\n{self.tail()}"
            )


def supervise(children: Iterable[Child], stop: threading.Event | None = None) -> None:
    """Watch until `stop` is set (without one: for ever).

    Raises:
        ChildDied: a child ended by itself.
    """
    watched, event = list(children), stop or threading.Event()
    while True:
        for child in watched:
            child.check()
        if event.wait(POLL_S):
            return


def stop_all(children: Iterable[Child], deadline_s: float) -> None:
    """Stop them side by side: one deadline for all."""
    stopping = list(children)
    until = time.monotonic() + deadline_s
    for child in stopping:
        child.signal(signal.SIGTERM)
    for child in stopping:
        child._wait(until - time.monotonic())
