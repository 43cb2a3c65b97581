"""The tables' store gets over a database that is broken."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from faust.types import TP

from k2.settings import Settings


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The store of a table of a K2 app, found by its entry point."""
    monkeypatch.setenv("K2_DATA", str(tmp_path))  # the module makes an app at import
    app = importlib.import_module("k2.app").create_app(Settings(data=tmp_path))
    table = app.Table("t", key_type=bytes, value_type=bytes, partitions=4)
    app.conf.tabledir.mkdir(parents=True, exist_ok=True)
    return table.data


def damage(folder: Path) -> None:
    """Change some bytes of every file that holds rows."""
    for path in folder.iterdir():
        if path.suffix in (".sst", ".log"):
            data = bytearray(path.read_bytes())
            for at in range(10, len(data), 50):
                data[at] ^= 0xFF
            path.write_bytes(data)


def filled(store: Any) -> Path:
    db = store._open_for_partition(2)
    for number in range(1000):
        db[b"%d" % number] = bytes(100)
    db.flush()
    db.close()
    return store.partition_path(2)


def test_sound_database_is_opened_with_its_rows(store: Any) -> None:
    filled(store)
    assert len(list(store._open_for_partition(2).keys())) == 1000


def test_broken_database_is_replaced_by_an_empty_one(store: Any, caplog: Any) -> None:
    """Faust then reads the whole changelog, since no offset is stored."""
    path = filled(store)
    damage(path)
    assert list(store._open_for_partition(2).keys()) == []
    assert str(path) in caplog.text
    assert "rebuilt from the changelog" in caplog.text


def test_database_in_use_is_left_alone(store: Any) -> None:
    filled(store)
    held = store._open_for_partition(2)
    with pytest.raises(Exception, match="LOCK"):
        store._open_for_partition(2)
    assert len(list(held.keys())) == 1000


def test_what_was_sent_late_does_not_hide_what_was_not_read(store: Any) -> None:
    """Records 2 to 8 are another worker's: they have to be read before 9 and 10 count."""
    tp = TP("changelog", 2)
    for offset in (0, 1, 9, 10):
        store.set_persisted_offset(tp, offset)
    assert store.persisted_offset(tp) == 1
