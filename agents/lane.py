"""What each kind of record has of its own in a worker; the rest of the way they share."""

from __future__ import annotations

from dataclasses import dataclass

from k2.codec import Decoder
from k2.lake.commit import Sink
from k2.schemas import Kind

__all__ = ["Lane"]


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """One a kind and worker."""

    kind: Kind
    decoder: Decoder
    sink: Sink
