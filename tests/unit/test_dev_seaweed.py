"""SeaweedFS as a process: what is in it stays, and its keys are not shown."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from k2.dev.seaweed import SeaweedFS
from k2.errors import CatalogUnavailable
from k2.lake.catalog import ensure_tables, load_table, open_catalog, table_name
from k2.schemas import TRADES
from k2.settings import Settings


@pytest.mark.slow
def test_tables_stay_over_a_restart_and_a_wrong_key_is_refused(tmp_path: Path) -> None:
    with SeaweedFS(tmp_path) as store:
        settings = Settings(data=tmp_path, **store.settings)
        ensure_tables(open_catalog(settings), settings)
        store.stop()
        store.start()
        table = load_table(open_catalog(settings), table_name(settings, TRADES))
        assert table.location().startswith("s3://lake/")
        wrong = Settings(**store.settings | {"catalog_credential": "nobody:secret-of-nobody"})
        with pytest.raises(CatalogUnavailable) as refused:
            ensure_tables(open_catalog(wrong), wrong)
        assert "secret-of-nobody" not in str(refused.value)


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(CatalogUnavailable, match=r"k2-market-data\[full\]"):
        SeaweedFS(tmp_path).start()
