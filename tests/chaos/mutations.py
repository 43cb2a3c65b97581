"""K2 without one of its guards: the oracle has to see what happens then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from k2.agents import ingest

from k2.codec import block, fields
from k2.lake import commit
from k2.schemas import TRADES
from tests.fuzz.reference import Reference
from tests.fuzz.test_codec_fuzz import check
from tests.fuzz.values import SCHEMAS

__all__ = ["GUARDED", "MUTATIONS", "PROOF", "misread_cases"]


def _no_fence() -> None:
    """A commit goes on whatever offsets the table has."""
    commit._fence = lambda table, change: None


def _no_watermark() -> None:
    """Rows that the table holds already are written again."""
    stock = ingest.assemble

    def assemble(*args: Any) -> Any:
        return stock(*args[:5], 0, 0, 0, *args[8:])

    ingest.assemble = assemble


def _no_proof() -> None:
    """What Polars read is believed."""

    def believe(holds: Any) -> None:
        np.all(holds)

    fields.require = believe
    block.require = believe


PROOF = "framing proof"

#: Guard: how it is taken out.
MUTATIONS: dict[str, Callable[[], None]] = {
    "fence": _no_fence,
    "watermark": _no_watermark,
    PROOF: _no_proof,
}

#: Guard: the fault that shows when it is not there. What the proof guards against, the fuzz shows.
GUARDED = {"fence": "frozen, then woken", "watermark": "killed after swap"}


def misread_cases(cases: int) -> int:
    """Without the proof: how many of the fuzz's first cases do not decode as they should."""
    guarded = fields.require, block.require
    _no_proof()
    try:
        reference, misread = Reference(TRADES, SCHEMAS[TRADES]), 0
        for number in range(cases):
            try:
                check(TRADES, reference, number)
            except (AssertionError, pa.ArrowInvalid):
                misread += 1
        return misread
    finally:
        fields.require, block.require = guarded
