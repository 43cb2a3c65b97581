"""What the oracle raises."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Wrong", "listed"]

LISTED_MAX = 10


class Wrong(AssertionError):
    """The tables are not what they must be.

    Attributes:
        lost: rows that must be there and are not, of those that this check counts.
        doubled: rows that are there once too often.
    """

    def __init__(self, what: str, *, lost: int = 0, doubled: int = 0) -> None:
        super().__init__(f"{lost} lost, {doubled} doubled: {what}" if lost or doubled else what)
        self.lost, self.doubled = lost, doubled


def listed(items: Iterable[object]) -> str:
    """The first few of them, and how many more there are."""
    every = [str(item) for item in items]
    more = len(every) - LISTED_MAX
    return ", ".join(every[:LISTED_MAX]) + (f" and {more} more" if more > 0 else "")
