"""K2 without one of its guards: the oracle has to see what happens then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from k2.agents import ingest

from k2.codec import block, fields
from k2.lake import commit

__all__ = ["MUTATIONS"]


def _no_fence() -> None:
    """A commit goes on whatever offsets the table has."""
    commit._fence = lambda table, expected: None


def _no_watermark() -> None:
    """Rows that the table holds already are written again."""
    stock = ingest.assemble

    def assemble(*args: Any) -> Any:
        return stock(*args[:-2], 0, 0)

    ingest.assemble = assemble


def _no_proof() -> None:
    """What Polars read is believed."""

    def believe(holds: Any) -> None:
        np.all(holds)

    fields.require = believe
    block.require = believe


#: Guard: how it is taken out.
MUTATIONS: dict[str, Callable[[], None]] = {
    "fence": _no_fence,
    "watermark": _no_watermark,
    "framing proof": _no_proof,
}
