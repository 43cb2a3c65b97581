"""SQL over an object store: the worker reads for a process that has neither keys nor a network."""

import uuid
from pathlib import Path

import pytest

from k2.dev.seaweed import SeaweedFS
from k2.lake.catalog import load_table
from k2.query.rows import Stop
from k2.sandbox.pool import Pool
from tests.statements import TRADES_EACH, lake

pytestmark = pytest.mark.slow


def test_a_statement_reads_an_object_store(tmp_path: Path) -> None:
    """Trades of one symbol joined with quotes, all of them objects."""
    with SeaweedFS(tmp_path / "store") as store:
        namespace = f"n{uuid.uuid4().hex}"
        catalog, settings = lake(tmp_path / "data", namespace=namespace, **store.settings)
        pool = Pool(catalog, settings)
        sql = (
            "SELECT count(*) AS n, sum(t.size) AS size FROM trades t ASOF JOIN quotes q "
            "ON t.symbol = q.symbol AND t.ts_event >= q.ts_event WHERE t.symbol = $s"
        )
        (row,) = pool.run(sql, {"s": "RIO"}, "json", Stop()).read_all().to_pylist()
        (task,) = load_table(catalog, f"{namespace}.quotes").scan().plan_files()
        pool.close()
    assert row == {"n": TRADES_EACH, "size": "1500"}
    assert task.file.file_path.startswith("s3://")
