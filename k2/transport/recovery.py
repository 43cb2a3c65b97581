"""Faust's recovery of tables, and what follows it, without a limit of time."""

from __future__ import annotations

from typing import Any

from faust.tables import TableManager
from faust.tables.recovery import Recovery

__all__ = ["PatientTables"]


class _PatientRecovery(Recovery):
    """Waits until what it waits for is done, or fails.

    Faust gives up after the time of one request, also on the sinks that say where to read from, and
    then the worker never reads again, without a word. A catalog may be away for longer.
    """

    async def _wait(self, coro: Any, timeout: Any = None) -> None:
        await super()._wait(coro, None)


class PatientTables(TableManager):
    """Faust's tables with that recovery; a new rebalance, and a stop, end the waiting."""

    _recovery: Recovery | None

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = _PatientRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery
