"""What is stored live of a partition: the mark behind its segments, which says which ones count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from k2.live.segments import FORM, Families, Name

__all__ = ["MARK", "Stored", "mark", "stored"]

#: Written behind all segments that it names; those that it does not name are as good as none.
MARK: Name = ("live-mark", FORM)


@dataclass(frozen=True, slots=True)
class Stored:
    """What the newest mark says."""

    end: int  # all records below this offset count, and no others
    families: Families


def mark(end: int, families: Families) -> bytes:
    """The value of the mark."""
    return orjson.dumps((end, families.all_names()))


def stored(segments: Mapping[Name, bytes]) -> Stored | None:
    """Return what can be gone on with; None: there is no mark, or not all that it names is there.

    Args:
        segments: all that there are of an epoch, those of other kinds too.
    """
    if MARK not in segments:
        return None
    end, named = orjson.loads(segments[MARK])
    names = [tuple(name) for name in named]
    return Stored(end, Families(names)) if segments.keys() >= set(names) else None
