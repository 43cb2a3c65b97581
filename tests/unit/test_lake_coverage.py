"""Offsets in windows: any budget finds the same holes and repetitions."""

from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k2.lake.coverage import OffsetFile, cover
from k2.lake.findings import LISTED_MAX, Findings
from k2.lake.offsets import Source

A, B = Source("c", "t", 0), Source("d", "u", 1)
END = 60


def write(folder: Path, rows: list[list[tuple[Source, int]]]) -> list[OffsetFile]:
    files = []
    for number, content in enumerate(rows):
        path = str(folder / f"{number}.parquet")
        table = pa.table(
            {
                "kafka_cluster": pa.array([s.cluster for s, _ in content], pa.string()),
                "kafka_topic": pa.array([s.topic for s, _ in content], pa.string()),
                "kafka_partition": pa.array([s.partition for s, _ in content], pa.int32()),
                "kafka_offset": pa.array([o for _, o in content], pa.int64()),
            }
        )
        pq.write_table(table, path)
        offsets = [offset for _, offset in content] or [0]
        files.append(OffsetFile(path, min(offsets), max(offsets)))
    return files


rows = st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, END + 5)), max_size=40)


@settings(deadline=None, max_examples=60,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(content=st.lists(rows, min_size=1, max_size=4), budget=st.integers(1, 200))
def test_any_budget_finds_what_is_not_there_once(
    tmp_path: Path, content: list[list[tuple[Source, int]]], budget: int
) -> None:
    """Holes are whole, in order and inclusive, also over the edges of windows."""
    files = write(tmp_path, content)
    holes: dict[Source, list[tuple[int, int]]] = {A: [], B: []}
    twice = {source: Findings("") for source in (A, B)}
    steps: list[tuple[int, int]] = []
    cover(
        {A: (0, END), B: (3, END)},
        files,
        pyarrow.fs.LocalFileSystem(),
        budget,
        lambda source, first, last: holes[source].append((first, last)),
        twice,
        lambda done, of: steps.append((done, of)),
    )
    flat = [row for file in content for row in file]
    for source, first in ((A, 0), (B, 3)):
        missing = {o for o in range(first, END) if (source, o) not in flat}
        runs = [o for o in sorted(missing) if o - 1 not in missing]
        ends = [o for o in sorted(missing) if o + 1 not in missing]
        assert holes[source] == list(zip(runs, ends, strict=True))
        repeated = {o for o in range(first, END) if flat.count((source, o)) > 1}
        found = twice[source].take()
        told = {int(f.detail.split("offset ")[1].split(":")[0]) for f in found if f.kind != "more"}
        assert told == set(sorted(repeated)[:LISTED_MAX])
    assert not steps or steps[-1][0] == steps[-1][1]


def test_a_window_reads_only_the_files_that_reach_into_it(tmp_path: Path) -> None:
    """Else the number of reads would grow with the square of the table."""
    files = write(tmp_path, [[(A, o) for o in range(n, n + 10)] for n in range(0, END, 10)])
    steps: list[tuple[int, int]] = []
    no_holes: list[object] = []
    cover(
        {A: (0, END)},
        files,
        pyarrow.fs.LocalFileSystem(),
        10,
        lambda *hole: no_holes.append(hole),
        {A: Findings("")},
        lambda done, of: steps.append((done, of)),
    )
    assert (steps, no_holes) == ([(n, 6) for n in range(1, 7)], [])


@pytest.mark.parametrize("rows", [254, 255, 256, 600])
def test_a_count_does_not_wrap(tmp_path: Path, rows: int) -> None:
    """A byte holds 255: more of one offset must not look like none."""
    files = write(tmp_path, [[(A, 0)] * (rows // 2), [(A, 0)] * (rows - rows // 2)])
    holes: list[object] = []
    twice = Findings("")
    local = pyarrow.fs.LocalFileSystem()
    cover({A: (0, 1)}, files, local, 9, lambda *h: holes.append(h), {A: twice}, lambda *_: None)
    (finding,) = twice.take()
    assert holes == []
    assert f"offset 0: {min(rows, 255)}{' or more' if rows >= 255 else ''} rows" in finding.detail
