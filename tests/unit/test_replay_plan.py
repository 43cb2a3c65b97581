"""Windows of time that promise about as many rows each, and what came after a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.replay.archive import Archive
from k2.replay.plan import US_MAX, US_MIN, Files, Windows, _File
from k2.schemas import TRADES
from tests.lakes import Lake, source

FILES = st.lists(
    st.tuples(st.integers(0, 10**15), st.integers(0, 10**12), st.integers(1, 10**6)).map(
        lambda f: _File("f", 1, f[2], f[0], f[0] + f[1], 0)
    ),
    max_size=20,
)


@given(FILES, st.integers(1, 50))
def test_windows_fill_the_span_whatever_the_files_are(files: list[_File], share: int) -> None:
    rows = max(1, sum(file.rows for file in files) // share)
    windows = Windows([Files(files)], US_MIN, US_MAX)
    low, count = US_MIN, 0
    while low < US_MAX:
        high = windows.after(low, rows)
        assert low < high <= US_MAX
        low, count = high, count + 1
        assert count <= 3 * (share + 2)


def test_window_ends_where_a_file_does() -> None:
    files = Files([_File(str(n), n, 1000, n * 100, n * 100 + 99, 0) for n in range(10)])
    windows = Windows([files], 0, 1000)
    assert [windows.after(0, rows) for rows in (700, 1000, 1500)] == [100, 100, 200]
    assert windows.after(800, 1000) == 1000  # what is left is no more than two of them
    assert files.within(0, 100) == ["0"]
    assert files.within(99, 101) == ["0", "1"]
    # Far from the end of a file it ends where the rows do.
    one = Windows([Files([_File("f", 1, 100_000, 0, 999_999, 0)])], 0, 1_000_000)
    assert one.after(0, 100) == pytest.approx(1000, abs=2)


def test_what_came_after_a_snapshot_comes_snapshot_by_snapshot(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    archive = Archive(lake.catalog, lake.settings)
    for _ in range(4):
        lake.commit(TRADES, {source(TRADES, 0): [(0, "A"), (86_400_000_000_000, "A")]})
    table = archive.table(TRADES)
    every = list(archive.manifests[TRADES].newer(table, 0, 1))
    assert [number for number, _ in every] == [1, 2, 3, 4]
    assert [len(paths) for _, paths in every] == [2] * 4  # a file a day, given together
    assert list(archive.manifests[TRADES].newer(table, 2, 1)) == every[2:]
    assert [number for number, _ in archive.manifests[TRADES].newer(table, 0, 3)] == [2, 4]
    assert not list(archive.manifests[TRADES].newer(table, 4, 1))
    archive.close()
