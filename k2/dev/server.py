"""What all servers on this machine have in common: started, waited for, stopped."""

from __future__ import annotations

import time
from types import TracebackType
from typing import ClassVar, Self

from k2.dev.children import Child
from k2.errors import ChildDied, K2Error

__all__ = ["Running", "Server"]

POLL_S = 0.05


class Running:
    """A context: `start` at its begin, `stop` at its end."""

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class Server(Running):
    """One process that answers when it is ready; a subclass says how it is started and asked."""

    name: ClassVar[str]
    start_timeout_s: ClassVar[float]
    stop_timeout_s: ClassVar[float]
    unavailable: ClassVar[type[K2Error]]

    child: Child | None = None

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            K2Error, as `unavailable` says: it cannot be started, it ended by itself, or it does not
                answer in time.
        """
        self.child = self._prepare()
        try:
            self.child.start()
            self._await_answer(self.child)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it. May be called twice."""
        if self.child is not None:
            self.child.stop(self.stop_timeout_s)

    def _prepare(self) -> Child:
        """Make what it needs, and return the process, not yet started."""
        raise NotImplementedError

    def _missing(self) -> str:
        """What is not there yet; "" when it answers as it should."""
        raise NotImplementedError

    def _await_answer(self, child: Child) -> None:
        until = time.monotonic() + self.start_timeout_s
        while True:
            try:
                child.check()
            except ChildDied as exc:
                raise self.unavailable(f"{self.name}: {exc}") from exc
            missing = self._missing()
            if not missing:
                return
            if time.monotonic() > until:
                raise self.unavailable(
                    f"{self.name}: not ready within {self.start_timeout_s:g} s: {missing}; "
                    f"end of {child.log}:\n{child.tail()}"
                )
            time.sleep(POLL_S)
