"""The benchmark runs, checks every contestant's work, and names each in its report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTESTANTS = ["K2", "K2, many symbols", "loop", "stock Faust", "limit: consumer that only counts"]


@pytest.mark.slow
def test_small_benchmark_passes_its_checks(tmp_path: Path) -> None:
    """A run of 20,000 trades reports all contestants, and freshness; no timing is asserted."""
    file = tmp_path / "bench.json"
    sizes = ["--trades", "20000", "--faust-trades", "2000", "--runs", "1", "--many-symbols", "500"]
    sizes += ["--fresh-rate", "1000", "--fresh-seconds", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *sizes, "--json", str(file)],
        cwd=ROOT,
        env={"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    for name in CONTESTANTS:
        assert f"\n{name} " in done.stdout
    for part in ("All checks passed", "Freshness", "Expected and measured", "Versions", "Doubts"):
        assert part in done.stdout
    report = json.loads(file.read_text())
    assert [line["contestant"] for line in report["lines"]] == CONTESTANTS
    (checkpoint,) = [e["measured"] for e in report["expectations"] if "checkpoint" in e["expected"]]
    assert 0 < float(checkpoint) < 1
    assert all(run["rate"] > 0 and run["rss_bytes_max"] > 0 for run in report["runs"])
    assert [each["way"] for each in report["freshness"]] == ["fresh", "committed"]
    assert all(each["trades"] > 5 for each in report["freshness"])
    assert not list(tmp_path.glob("k2-bench-*")), "temporary folders are left behind"


@pytest.mark.slow
def test_small_benchmark_of_queries_passes_its_checks(tmp_path: Path) -> None:
    """Over 20,000 trades both sides answer alike, alone and together, and all is replayed."""
    file = tmp_path / "queries.json"
    sizes = ["--trades", "20000", "--commit-rows", "1000", "--asked", "20", "--symbols", "5"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.queries", *sizes, "--json", str(file)],
        cwd=ROOT,
        env={"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    for part in ("All checks passed", "at once", "Expected and measured", "Versions", "Doubts"):
        assert part in done.stdout
    report = json.loads(file.read_text())
    lake = report["lake"]
    assert (lake["rows"], lake["commits"], lake["paths"]) == (20_000, 20, 20)
    names = ["point", "bars", "scan", "sql"]
    assert [each["name"] for each in report["turns"]] == names
    assert [each["name"] for each in report["together"]] == names
    for each in report["turns"]:
        assert len(each["k2"]) == len(each["bare"]) == len(each["told"]) > 0
        assert each["rows"] > 0
    assert [each["form"] for each in report["replays"]] == ["arrow", "ndjson"]
    assert {each["trades"] for each in report["replays"]} == {20_000}
    assert len({each["digest"] for each in report["replays"]}) == 1
    assert not list(tmp_path.glob("k2-bench-*")), "temporary folders are left behind"
