"""How much one query may gather before it is read."""

from __future__ import annotations

import threading

from k2.errors import QueryTooLarge

__all__ = ["Room"]


class Room:
    """Memory for what comes from several places at once; from any thread."""

    def __init__(self, bytes_max: int, limit: str) -> None:
        """`limit`: what sets it, and what to do about it; ends the message."""
        self._bytes_max, self._limit = bytes_max, limit
        self._lock = threading.Lock()
        self.taken = 0

    def take(self, size: int) -> None:
        """Count bytes as they come, rather than what there is in the end.

        Raises:
            QueryTooLarge: with what was taken before, they are too many.
        """
        with self._lock:
            self.taken += size
            taken = self.taken
        if taken > self._bytes_max:
            raise QueryTooLarge(f"gathered: {taken} bytes > {self._bytes_max}, {self._limit}")
