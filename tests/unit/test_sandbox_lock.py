"""DuckDB's own lock, without the look at the tree before it and the kernel's walls around it."""

import socket

import duckdb
import pytest

from k2.sandbox.child import _Limits, _lock, _Process
from k2.sandbox.files import PlannedFiles
from tests.attempts import ATTEMPTS

CANARY = "k2-canary-77ab"
GROUPS = ("files", "files as tables", "http", "attach", "copy", "extensions", "settings")
STATEMENTS = [attempt.body["sql"] for attempt in ATTEMPTS if attempt.group in GROUPS]


@pytest.mark.parametrize("number", range(len(STATEMENTS)))
def test_the_lock_alone_lets_nothing_in_or_out(tmp_path, number):
    """A statement fails, or tells of nothing but DuckDB itself; no file is made, nobody reached."""
    (tmp_path / "own").mkdir()
    (tmp_path / "secret").write_text(CANARY)
    files = PlannedFiles(None)
    process = _Process(None, tmp_path / "own", _Limits(64 << 20, 10, 1 << 20, 1), frozenset())
    database = process._database(files)
    _lock(database, ["CREATE VIEW trades AS SELECT 1 AS symbol"], 0)
    told = ""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        sql = STATEMENTS[number]
        for name, value in (
            ("secret", str(tmp_path / "secret")),
            ("made", str(tmp_path / "made")),
            ("parquet", str(tmp_path / "secret")),
            ("port", str(listener.getsockname()[1])),
        ):
            sql = sql.replace(f"{{{name}}}", value)
        try:
            told = str(database.execute(sql).fetchall())
        except duckdb.Error as exc:
            told = str(exc)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert CANARY not in told
    ((limit,),) = database.execute(
        "SELECT value FROM duckdb_settings() WHERE name = 'memory_limit'"
    ).fetchall()
    database.close()
    assert limit == "64.0 MiB"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "secret"]
