"""What was asked and how long it took: tables, what was expected, and the doubts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from tests.bench.queries.asking import CLIENTS, Together, Turns
from tests.bench.queries.lake import Lake
from tests.bench.queries.replays import Replay
from tests.bench.report import Machine, columns, versions

__all__ = ["DOUBTS", "Found", "as_json", "as_text"]

RATIO_MAX, EXTRA_MS = 1.5, 5.0
RATES_MIN = {"arrow": 1_000_000, "ndjson": 200_000}
#: Of a replay's memory: the greatest of its last tenth over that of its second.
FLAT_MAX = 1.1

DOUBTS = (
    "Worker, client and bare DuckDB share the machine, but take turns; the worker goes on polling "
    "its broker meanwhile. A client elsewhere would wait for its network too.",
    "Bare DuckDB has the list of files for nothing. Of its ways `told` is the faster one: somebody "
    "has planned for it. `iceberg_scan` is not measured: there is no such extension for this "
    "version of DuckDB where there is no network.",
    "All files are in the page cache, on a local disk, of one table, and nothing is committed "
    "meanwhile: a new snapshot costs the first query after it some milliseconds more.",
    "The gap ledger is empty. The rows are simulated: 100 symbols, of which the first has a fifth "
    "of all trades.",
    f"{CLIENTS} clients are threads of one Python process, which takes its part of the cores, and "
    "so do those of bare DuckDB.",
    "K2's bars divide exactly and begin with their session, DuckDB's vwap is a double; `vwap` "
    "is not compared.",
    "Other work on the machine shows in the load average and most in p99.",
)


@dataclass(frozen=True, slots=True)
class Found:
    """All that was measured."""

    lake: Lake
    made_seconds: float
    nothing_ms: float  # a request that asks for nothing, median
    turns: Sequence[Turns]
    together: Sequence[Together]
    replays: Sequence[Replay]
    load_at_end: float


@dataclass(frozen=True, slots=True)
class Times:
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        if len(seconds) < 2:
            value = 1000 * seconds[0] if seconds else float("nan")
            return cls(value, value)
        return cls(1000 * median(seconds), 1000 * quantiles(seconds, n=100, method="inclusive")[98])

    def __str__(self) -> str:
        return f"{self.p50_ms:,.1f} / {self.p99_ms:,.1f}"


def expectations(found: Found) -> list[tuple[str, str, bool]]:
    """Return (expected, measured, reached): said, never enforced."""
    said = []
    for turns in found.turns:
        k2, bare, told = (Times.of(t).p50_ms for t in (turns.k2, turns.bare, turns.told))
        for name, other in (("bare", bare), ("told", told)):
            limit = RATIO_MAX * other + EXTRA_MS
            what = f"{turns.name}: K2's p50 within {RATIO_MAX:g}x {name} + {EXTRA_MS:g} ms"
            said.append((what, f"{k2:.1f} of {limit:.1f} ms", k2 <= limit))
    for replay in found.replays:
        least = RATES_MIN[replay.form]
        what = f"replay, {replay.form}: at least {least:,} trades/s"
        said.append((what, f"{replay.rate:,.0f}", replay.rate >= least))
        early, late = replay.rss_of(0.1, 0.2), replay.rss_of(0.9, 1.0)
        what = f"replay, {replay.form}: memory is flat"
        measured = f"{early / 1e6:,.0f} MB early, {late / 1e6:,.0f} MB late"
        said.append((what, measured, late <= FLAT_MAX * early))
    return said


def as_text(found: Found, machine: Machine) -> str:
    """The report for people."""
    lake, plan = found.lake, found.lake.plan
    load = ", ".join(f"{number:.2f}" for number in machine.load_average)
    return "\n".join(
        [
            "Queries over HTTP, from the request to an Arrow table in the client, p50 / p99 ms",
            "",
            *columns([("question", "asked", "rows", "files", "K2", "bare", "told", "x bare",
                       "x told"), *map(_turn, found.turns)]),
            "",
            "bare: DuckDB over all files of the snapshot, told: over those that hold the answer. "
            "rows, files: of an answer, on average.",
            f"A request that asks for nothing takes {found.nothing_ms:.2f} ms.",
            "",
            f"{CLIENTS} clients at once, p50 / p99 ms",
            "",
            *columns([("question", "asked", "K2", "bare", "K2 queries/s", "bare queries/s",
                       "x", "refused"), *map(_at_once, found.together)]),
            "",
            "Replays of the whole table, read by a client that only reads; the worker's memory",
            "",
            *columns([("format", "trades", "trades/s", "bytes/trade", "MB before", "at its start",
                       "middle", "end", "most"), *map(_replay, found.replays)]),
            "",
            "All checks passed: both sides' answers are equal, and so are the replays' digests.",
            "",
            "Expected and measured",
            *(
                f"  {what}: {measured}, {'reached' if reached else 'NOT reached'}"
                for what, measured, reached in expectations(found)
            ),
            "",
            f"Table: seed {plan.seed}, {lake.rows:,} trades of {plan.symbols} symbols in "
            f"{plan.sessions} sessions, {lake.commits} commits of {plan.commit_rows:,} rows or "
            f"fewer, {len(lake.paths)} files ({lake.bytes / 1e6:,.0f} MB), {lake.snapshots} "
            f"snapshots kept; made through K2's sink in {found.made_seconds:.0f} s",
            f"Machine: {machine.system}, {machine.processor}, {machine.cores} cores, "
            f"{machine.memory_bytes / 1e9:.0f} GB; load average at the start {load}, at the end "
            f"{found.load_at_end:.2f}",
            "Versions: " + ", ".join(f"{name} {number}" for name, number in versions().items()),
            "",
            "Doubts",
            *(f"  - {doubt}" for doubt in DOUBTS),
        ]
    )  # fmt: skip


def _turn(turns: Turns) -> tuple[str, ...]:
    k2, bare, told = (Times.of(seconds) for seconds in (turns.k2, turns.bare, turns.told))
    asked = len(turns.k2)
    return (
        turns.name,
        f"{asked:,}",
        f"{turns.rows / asked:,.0f}",
        f"{turns.files / asked:,.1f}",
        *map(str, (k2, bare, told)),
        f"{k2.p50_ms / bare.p50_ms:.2f}",
        f"{k2.p50_ms / told.p50_ms:.2f}",
    )


def _at_once(together: Together) -> tuple[str, ...]:
    k2, bare = len(together.k2) / together.k2_seconds, len(together.bare) / together.bare_seconds
    return (
        together.name,
        f"{len(together.bare):,}",
        str(Times.of(together.k2)),
        str(Times.of(together.bare)),
        f"{k2:,.1f}",
        f"{bare:,.1f}",
        f"{k2 / bare:.2f}",
        str(together.refused),
    )


def _replay(replay: Replay) -> tuple[str, ...]:
    sizes = (
        replay.rss[0],
        replay.rss_of(0.0, 0.1),
        replay.rss_of(0.45, 0.55),
        replay.rss_of(0.9, 1.0),
        max(replay.rss),
    )
    return (
        replay.form,
        f"{replay.trades:,}",
        f"{replay.rate:,.0f}",
        f"{replay.bytes / replay.trades:.0f}",
        *(f"{size / 1e6:,.0f}" for size in sizes),
    )


def as_json(found: Found, machine: Machine) -> dict[str, Any]:
    """The report for programs; times in seconds, sizes in bytes."""
    lake = asdict(found.lake) | {"paths": len(found.lake.paths)}
    lake["plan"] = asdict(found.lake.plan)
    return {
        "lake": lake,
        "machine": asdict(machine) | {"load_at_end": found.load_at_end},
        "versions": versions(),
        "nothing_ms": found.nothing_ms,
        "turns": [asdict(turns) for turns in found.turns],
        "together": [asdict(together) for together in found.together],
        "replays": [asdict(replay) | {"rate": replay.rate} for replay in found.replays],
        "expectations": [
            {"expected": what, "measured": measured, "reached": reached}
            for what, measured, reached in expectations(found)
        ],
        "doubts": DOUBTS,
    }
