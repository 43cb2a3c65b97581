"""The stored sequence states: epochs of several owners stay apart."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import orjson
import pytest

from k2.lake.offsets import Source
from k2.sequence import Chain, Memory, SymbolState

SOURCE = Source("c", "market.trades.sim", 2)


def state(last: int) -> SymbolState:
    return Memory(1, Chain(1, last, last, last, []), offset=last).pack()


@pytest.fixture
def sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("K2_DATA", str(tmp_path))  # the module makes the app at import
    module = importlib.import_module("k2.tables.sequences")
    monkeypatch.setattr(module, "table", {})
    return module


def put(sequences: Any, epoch: str, watermark: int | None, missing: int = 0, **lasts: int) -> None:
    """Write an epoch; its watermark says that there are `missing` more symbols."""
    for symbol, last in lasts.items():
        key = orjson.dumps((*SOURCE, epoch, "SIM", symbol.replace("_", "/")))
        sequences.table[key] = bytes(state(last))
    if watermark is not None:
        mark = orjson.dumps((watermark, len(lasts) + missing))
        sequences.table[orjson.dumps((*SOURCE, epoch))] = mark


def test_late_records_of_a_former_owner_change_nothing(sequences: Any) -> None:
    """The former owner's states, come after its successor's, are in an epoch of their own."""
    put(sequences, "2-b", 50, A=40, B=41)
    put(sequences, "1-a", 20, A=10, B=11)
    stored, keys = sequences.load({SOURCE})
    assert (stored[SOURCE].epoch, stored[SOURCE].watermark) == ("2-b", 50)
    assert stored[SOURCE].symbols == {("SIM", "A"): state(40), ("SIM", "B"): state(41)}
    assert len(keys[SOURCE]) == 6


def test_epoch_without_watermark_is_torn_and_not_used(sequences: Any) -> None:
    put(sequences, "9-a", 20, A=10)
    put(sequences, "10-b", None, A=40)
    stored, _ = sequences.load({SOURCE})
    assert (stored[SOURCE].epoch, stored[SOURCE].watermark) == ("9-a", 20)


def test_epoch_that_lacks_a_symbol_is_not_used(sequences: Any) -> None:
    """A quiet symbol that is not there would begin anew, and its next gap go unseen."""
    put(sequences, "1-a", 20, A=10, B=11)
    put(sequences, "2-b", 50, missing=1, A=40)
    stored, _ = sequences.load({SOURCE})
    assert (stored[SOURCE].epoch, stored[SOURCE].watermark) == ("1-a", 20)


def test_epochs_count_as_numbers_and_equal_ones_by_their_watermark(sequences: Any) -> None:
    put(sequences, "9-a", 90)
    put(sequences, "10-b", 60)
    put(sequences, "10-c", 70)
    stored, _ = sequences.load({SOURCE})
    assert stored[SOURCE].epoch == "10-c"
    assert sequences.epoch_after("10-c").startswith("11-")
    assert sequences.epoch_after(None) != sequences.epoch_after(None)


def test_symbol_may_hold_a_slash(sequences: Any) -> None:
    put(sequences, "1-a", 5, BTC_USD=4)
    stored, _ = sequences.load({SOURCE, Source("other", "t", 0)})
    assert stored[SOURCE].symbols == {("SIM", "BTC/USD"): state(4)}


def test_other_sources_are_left_out(sequences: Any) -> None:
    put(sequences, "1-a", 5, A=4)
    stored, keys = sequences.load({Source("c", "market.trades.sim", 1)})
    assert stored == {}
    assert list(keys.values()) == [[]]
