"""Partitions that wait behind a critical finding until an operator lets them go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from faust.types import TP
from k2.agents.lake import Lake
from pyiceberg.catalog import Catalog

from k2 import metrics
from k2.lake.acceptances import resumed
from k2.sequence import Change
from k2.settings import Settings

__all__ = ["Pauses"]

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


class Pauses:
    """Which partitions wait, and for what; the ledger says whether one may go on."""

    def __init__(self, lake: Lake, catalog: Catalog, settings: Settings) -> None:
        self._lake, self._what = lake, (catalog, settings)
        self._causes: dict[TP, Change] = {}
        self._any = asyncio.Event()

    def __contains__(self, tp: TP) -> bool:
        """Whether the partition waits."""
        return tp in self._causes

    def begin(self, tp: TP, cause: Change) -> None:
        """Note that the partition waits before the record that showed a finding."""
        self._causes[tp] = cause
        self._any.set()
        metrics.paused.labels(*tp).set(1)
        log.error("paused: %s", _said(tp, cause))

    def clear(self) -> None:
        """Forget all: who reads a partition next finds the same again."""
        self._causes.clear()
        self._any.clear()
        metrics.paused.clear()

    def reasons(self) -> list[str]:
        """What each waits for, in a sentence."""
        return [_said(tp, cause) for tp, cause in sorted(self._causes.items())]

    async def resumed(self, causes: Sequence[Change]) -> set[str]:
        """Return the ids of those findings of which an operator has said that ingest may go on."""
        seen = {cause.gap_id: cause.seen_at for cause in causes}
        return await self._lake.patiently(resumed, *self._what, seen)

    async def over(self) -> list[TP]:
        """Wait for partitions that may go on, and return them: they no longer count as paused."""
        while True:
            await self._any.wait()
            await asyncio.sleep(LOOK_EVERY_S)
            ids = await self.resumed(list(self._causes.values()))
            # Meanwhile they may have been taken away, or wait for something else.
            if ended := [tp for tp, cause in self._causes.items() if cause.gap_id in ids]:
                break
        for tp in ended:
            cause = self._causes.pop(tp)
            metrics.paused.remove(*tp)
            log.warning("%s[%d] goes on: %s was resumed", *tp, cause.gap_id)
        if not self._causes:
            self._any.clear()
        return ended


def _said(tp: TP, cause: Change) -> str:
    what = (
        f"{cause.kind} {cause.gap_id} of {' '.join(filter(None, (cause.exchange, cause.symbol)))}"
    )
    missing = f"{cause.count} missing ({cause.missing_first}..{cause.missing_last})"
    if cause.kind == "reset":
        missing = f"the sequence began again at {cause.missing_first}, after {cause.missing_last}"
    return (
        f"{tp.topic}[{tp.partition}] waits at offset {cause.offset}: {what}: {missing}; "
        f"`k2 resume {cause.gap_id} --reason TEXT` lets it go on"
    )
