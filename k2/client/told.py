"""What an answer says of its rows, by its headers; what a replay says at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Completed", "Coverage", "Told"]


@dataclass(frozen=True, slots=True)
class Coverage:
    """What is missing of the span and the symbols that were asked for, as far as K2 can know."""

    gaps: int = 0
    missing: int = 0

    @property
    def complete(self) -> bool:
        return self.gaps == 0


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of the rows of an answer, or of one page of it.

    coverage: None: not known, or rows that are no records.
    snapshot_id: None: a table without a commit, or rows of no one snapshot.
    snapshots: of SQL, by table.
    valid_through: ns: every record that Kafka had before is in it; None: not known.
    truncated: there are more rows. next: the cursor behind the last one, where there are cursors.
    fresh: rows are among them that are in no snapshot yet, or might be.
    """

    coverage: Coverage | None = None
    snapshot_id: int | None = None
    valid_through: int | None = None
    truncated: bool = False
    next: str | None = None
    fresh: bool = False
    snapshots: Mapping[str, int | None] = field(default_factory=dict)
    request_id: str | None = None

    @classmethod
    def read(cls, headers: Mapping[str, str]) -> Told:
        """`headers`: by their names in small letters."""
        return cls(
            _coverage(headers.get("x-k2-coverage")),
            _number(headers.get("x-k2-snapshot-id")),
            _number(headers.get("x-k2-valid-through")),
            headers.get("x-k2-truncated") == "true",
            headers.get("x-k2-next"),
            headers.get("x-k2-fresh") == "true",
            {name: _number(text) for name, text in _named(headers.get("x-k2-snapshots"))},
            headers.get("x-request-id"),
        )


@dataclass(frozen=True, slots=True)
class Completed:
    """The end of a replay's history, as the worker counts since the last connection began."""

    trades: int
    quotes: int
    gaps: int
    digest: str
    cursor: str  # to go on from with `follow`

    @classmethod
    def read(cls, said: Mapping[str, Any], cursor: str) -> Completed:
        return cls(said["trades"], said["quotes"], said["gaps"], said["digest"], cursor)


def _coverage(text: str | None) -> Coverage | None:
    if text is None:
        return None
    return Coverage(**{name: int(number) for name, number in _named(text)})


def _named(text: str | None) -> list[tuple[str, str]]:
    """`gaps=2; missing=17` as pairs; `complete` has none."""
    pairs = (part.strip().partition("=") for part in (text or "").split(";"))
    return [(name, value) for name, equals, value in pairs if equals]


def _number(text: str | None) -> int | None:
    return None if text is None or text == "none" else int(text)
