"""The ledger of replays: who may send a record again, over a real catalog."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from k2.errors import CatalogUnavailable, CommitFailed
from k2.lake.catalog import ensure_tables, open_catalog
from k2.lake.offsets import Source
from k2.lake.replays import Ledger, Place
from k2.settings import Settings

SOURCE = Source("c", "t", 0)
A, B, C = (Place(*SOURCE, offset) for offset in range(3))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(data=tmp_path)
    ensure_tables(open_catalog(settings), settings)
    return settings


def ledger(settings: Settings) -> Ledger:
    return Ledger(open_catalog(settings), settings)


def test_nothing_replayed_needs_no_table(settings: Settings) -> None:
    """To read makes nothing."""
    assert ledger(settings).notes() == {}
    assert not open_catalog(settings).table_exists("market.replays")


def test_intended_is_in_doubt_until_done(settings: Settings) -> None:
    """Another operator sees both, and gets what is left only."""
    first, second = ledger(settings), ledger(settings)
    assert first.intend("one", [A, B], "c", {SOURCE: 7}, force=False) == [A, B]
    assert [(note.done, note.log_end) for note in second.notes().values()] == [(False, 7)] * 2
    first.done({A: 9}, first.notes())
    found = second.notes()
    assert (found[A].done, found[A].sent_offset, found[B].done) == (True, 9, False)
    assert second.intend("two", [A, B, C], "c", {}, force=False) == [C]


def test_force_begins_anew_and_is_in_doubt_again(settings: Settings) -> None:
    """The newest replay counts, not that an older one was done."""
    own = ledger(settings)
    own.intend("one", [A], "c", {}, force=False)
    own.done({A: 9}, own.notes())
    assert own.intend("two", [A], "c", {SOURCE: 12}, force=True) == [A]
    assert (own.notes()[A].replay, own.notes()[A].done) == ("two", False)


def test_of_many_at_once_each_place_has_one(settings: Settings) -> None:
    """Eight operators race for the same records: none is sent twice, none is left."""
    places = [Place(*SOURCE, offset) for offset in range(50)]

    def claim(number: int) -> list[Place]:
        return ledger(settings).intend(str(number), places, "c", {}, force=False)

    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(claim, range(8)))
    assert sorted(place for own in claimed for place in own) == places


def test_what_cannot_be_noted_is_an_error(tmp_path: Path) -> None:
    """Without the catalog's namespace nothing is sent."""
    settings = Settings(data=tmp_path, commit_timeout_ms=100)
    own = Ledger(open_catalog(settings), settings)
    with pytest.raises(CatalogUnavailable):
        own.intend("one", [A], "c", {}, force=False)
    with pytest.raises(CommitFailed, match="commit_timeout_ms"):
        own.done({A: 1}, {A: _note()})


def _note():
    from k2.lake.replays import Note

    return Note("one", False, "c", None, None, "")
