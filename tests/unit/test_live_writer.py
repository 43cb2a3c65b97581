"""A checkpoint of what is known live, while its partition is taken away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from k2.agents import writer

from k2.live import Live, Stored, aggregate
from k2.live.segments import FORM, Families
from k2.schemas import TRADES
from tests.unit.test_live import E8, batch

PLACE = TP(TRADES.topic("SIM"), 0)


def partition() -> Any:
    """One whose segment cannot be read: its store is closed."""
    piece = aggregate(TRADES, *batch(TRADES, [("A", 1, 0, 1, E8, E8, True)], 0))
    stored = Stored(1, Families([("live", FORM, 1, 0, 0)]))
    live = Live(TRADES, 1, lambda name, copied: None, stored)
    live.add(piece, 2)
    live.take()
    return SimpleNamespace(live=live)


async def test_of_a_partition_taken_away_nothing_is_written() -> None:
    """Whether or not its store was closed under the thread that read it."""
    gone = partition()
    assert await writer._live(PLACE, gone, 2, {}) is None
    gone.live = Live(TRADES, 1, lambda name, copied: None)
    assert await writer._live(PLACE, gone, 2, {}) is None
    assert await writer._live(PLACE, gone, 2, {PLACE: gone}) is not None


async def test_a_store_that_fails_its_owner_is_an_error() -> None:
    own = partition()
    with pytest.raises(LookupError, match="written, and not there"):
        await writer._live(PLACE, own, 2, {PLACE: own})
