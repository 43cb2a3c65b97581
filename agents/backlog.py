"""Fetches of a partition that wait for their turn; those that wait together become one batch.

A batch costs a millisecond or two, however few its records are. So the busier a worker is, the
larger are its batches, and what waits is never more than what two turns take.
"""

from __future__ import annotations

import asyncio

from k2.transport import Fetched, joined

__all__ = ["Backlog", "Batch"]

#: One is checked, and one is decoded meanwhile.
TURNS = 2


class Batch:
    """Fetches in the order of their offsets, none missing in between, until their turn comes."""

    def __init__(self, fetched: Fetched) -> None:
        self._fetches: list[Fetched] = [fetched]
        self._taken = False
        self.nbytes = fetched.nbytes

    def join(self, fetched: Fetched, bytes_max: int) -> bool:
        """Take one more, if it goes on where the last one ended and there is room."""
        last = self._fetches[-1]
        follows = (last.seek, last.next_offset) == (fetched.seek, fetched.first_offset)
        if self._taken or not follows or self.nbytes + fetched.nbytes > bytes_max:
            return False
        self._fetches.append(fetched)
        self.nbytes += fetched.nbytes
        return True

    def take(self) -> Fetched:
        """All of them as one; nothing joins any more."""
        self._taken = True
        return joined(self._fetches)


class Backlog:
    """The batches of a partition that are under way."""

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(TURNS)  # FIFO
        self._newest: Batch | None = None

    def add(self, fetched: Fetched, bytes_max: int) -> Batch | None:
        """Return a new batch; None: it joined one that waits, of no more than so many bytes."""
        if self._newest is not None and self._newest.join(fetched, bytes_max):
            return None
        self._newest = Batch(fetched)
        return self._newest
