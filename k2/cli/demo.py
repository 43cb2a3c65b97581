"""`k2 demo`: a simulated trading day through the whole of K2, and what came of it."""

from __future__ import annotations

import datetime as dt
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import click
import duckdb
import orjson
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from k2 import settings as k2_settings
from k2.cli.stack import running
from k2.cli.verify import inspect
from k2.dev.broker import free_port, port_is_free
from k2.dev.stack import Stack
from k2.errors import K2Error
from k2.feeds.producer import Produced, produce
from k2.feeds.simulate import Simulation
from k2.lake.catalog import open_catalog
from k2.query.engine import Engine
from k2.schemas import TRADES
from k2.settings import Settings

__all__ = ["demo"]

EXCHANGE = "SIM"
COMMIT_TIMEOUT_S = 120.0
POLL_S = 0.1
GAPS_SHOWN = 6
NS = 10**9
INDENT = (0, 0, 0, 3)

Interval = tuple[str, int, int]  # symbol, first and last missing sequence

#: What is missing before each row that opened a gap: behind the highest sequence so far of the
#: symbol's chain, which a reset begins anew.
_GAPS_SQL = """
SELECT symbol, before + 1, sequence - 1 FROM (
    SELECT symbol, sequence, verdict, max(sequence) OVER (
        PARTITION BY symbol, chain ORDER BY kafka_offset
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS before
    FROM (
        SELECT *, count(CASE WHEN verdict = 'reset' THEN 1 END) OVER (
            PARTITION BY symbol ORDER BY kafka_offset
        ) AS chain FROM trades
    )
) WHERE verdict = 'gap' ORDER BY ALL
"""


@click.command()
@click.option("--once", is_flag=True, help="End when all is shown; exit code 1 if anything is off.")
@click.option(
    "--trades", type=click.IntRange(10_000), default=1_000_000, show_default=True, help="Trades."
)
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="Keep the data in this folder."
)
@click.option("--port", type=int, help="Port of the web views; default: 6066, else any free one.")
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="Of the day.")
def demo(once: bool, trades: int, data: Path | None, port: int | None, seed: int) -> None:
    """Show K2 at work: a simulated trading day from Kafka into Iceberg, and queries over it.

    Starts a broker in memory and a worker, sends a day with faults in it, and shows what K2 found;
    the web views then stay up until Ctrl-C. Without --data nothing is left behind.
    """
    console = Console()
    folder = data or Path(tempfile.mkdtemp(prefix="k2-demo-"))
    if data is not None and data.exists() and any(data.iterdir()):
        raise K2Error(f"--data: {data} is not empty: a demo's day would mix with what is there")
    default = Settings().port
    free = default if port_is_free("127.0.0.1", default) else free_port()
    settings = k2_settings.load(
        data=folder, port=port or free, exchanges=EXCHANGE, partitions=4, keys_file=""
    )
    stack = Stack(settings, embedded=True, tell=lambda line: None)
    fine = False
    try:
        console.print("[bold]1. Start[/] a Kafka broker, an Iceberg catalog and a K2 worker ...")
        with running(stack):
            show = _Demo(console, stack.settings, stack.views[0])
            fine = show.run(seed, trades)
            if not once:
                show.invite()
                stack.supervise()
    finally:
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if fine else 1)


class _Demo:
    """What is shown, in its order."""

    def __init__(self, console: Console, settings: Settings, url: str) -> None:
        self._console, self._settings, self._url = console, settings, url
        self._catalog = open_catalog(settings)
        self._engine = Engine(self._catalog, settings)

    def run(self, seed: int, trades: int) -> bool:
        """Show all; whether K2 found exactly what the day holds."""
        day = dt.datetime.now(dt.UTC).date()
        simulation = Simulation(
            seed, 200, trades, EXCHANGE, day, gaps=10, late=5, duplicates=40, resets=3
        )
        self._ingest(simulation)
        self._queries()
        found = self._faults(simulation)
        return self._audit() and found

    def invite(self) -> None:
        """Say what can be done now."""
        bars = f"{self._url}/v1/bars?exchange={EXCHANGE}&symbol=S00001&interval=1m&format=csv"
        self._console.print(
            f"\n[bold]K2 stays up[/]: {self._url}. In another terminal:\n"
            f"  curl '{bars}'\n"
            f"  K2_DATA={self._settings.data} k2 verify\n"
            "Ctrl-C ends it.",
            soft_wrap=True,
            highlight=False,
        )

    def _ingest(self, simulation: Simulation) -> None:
        total = simulation.journal.sent
        self._console.print(
            f"[bold]2. Send[/] a trading day of {total:,} trades in {len(simulation.names)} symbols"
            " to Kafka, while the worker checks and commits them ...",
            soft_wrap=True,
        )
        sending = _Sending(simulation, self._settings)
        columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=self._console) as bars:
            sent = bars.add_task("sent to Kafka       ", total=total)
            kept = bars.add_task("committed to Iceberg", total=total)
            started = time.monotonic()
            sending.start()
            committed, moved = 0, started
            while committed < total:
                time.sleep(POLL_S)
                sending.check()
                before = committed
                committed = sum(at["next_offset"] for at in self._engine.status()["offsets"])
                bars.update(sent, completed=sending.sent)
                bars.update(kept, completed=committed)
                moved = time.monotonic() if committed > before else moved
                if time.monotonic() - moved > COMMIT_TIMEOUT_S:
                    raise K2Error(f"{committed} of {total} committed, none in {COMMIT_TIMEOUT_S} s")
            seconds = time.monotonic() - started
        status = self._engine.status()
        self._console.print(
            f"   {status['rows']:,} trades in Iceberg, {seconds:.1f} s after the first was sent: "
            f"{total / seconds:,.0f} a second, with feed and broker on this machine.",
            soft_wrap=True,
            highlight=False,
        )

    def _queries(self) -> None:
        self._console.print("[bold]3. Ask[/] for them over HTTP:")
        first = self._get("symbols")[0]
        opening = dt.datetime.fromtimestamp(first["first_ts_event"] // NS, dt.UTC)
        start = opening.replace(minute=0, second=0)
        noon = start + dt.timedelta(hours=2)
        name = f"exchange={EXCHANGE}&symbol={first['symbol']}"
        bars = self._get(f"bars?{name}&interval=30m&start={_iso(start)}&end={_iso(noon)}")
        self._table(bars, ("start", "open", "high", "low", "close", "volume", "vwap", "trades"))
        columns = ("ts_event", "sequence", "price", "size", "side", "verdict", "kafka_offset")
        self._table(self._get(f"trades?{name}&start={_iso(noon)}&limit=3"), columns)

    def _get(self, resource: str) -> list[dict[str, Any]]:
        started = time.monotonic()
        with urllib.request.urlopen(f"{self._url}/v1/{resource}", timeout=60) as answer:
            rows: list[dict[str, Any]] = orjson.loads(answer.read())["data"]
        milliseconds = (time.monotonic() - started) * 1000
        self._console.print(
            f"   GET /v1/{resource}  [dim]{len(rows)} rows in {milliseconds:.0f} ms[/]",
            soft_wrap=True,
            highlight=False,
        )
        return rows

    def _table(self, rows: list[dict[str, Any]], names: tuple[str, ...] = ()) -> None:
        chosen = names or tuple(rows[0])
        table = _plain_table(*chosen)
        for row in rows:
            table.add_row(*(_text(name, row[name]) for name in chosen))
        self._console.print(Padding(table, INDENT), highlight=False)

    def _faults(self, simulation: Simulation) -> bool:
        """Compare what K2 found with what the simulation left out and repeated."""
        columns = ("symbol", "sequence", "verdict", "kafka_offset")
        connection = duckdb.connect()
        rows = self._engine.records(TRADES, EXCHANGE, columns=columns)
        connection.register("trades", rows.reader())
        connection.execute("CREATE TABLE kept AS FROM trades")
        found: list[Interval] = connection.execute(_GAPS_SQL.replace("trades", "kept")).fetchall()
        counts = dict(
            connection.execute("SELECT verdict, count(*) FROM kept GROUP BY 1").fetchall()
        )
        connection.close()
        journal = simulation.journal
        late = sum(entry.kind == "late" for entry in journal.entries)
        resets = sum(entry.kind == "reset" for entry in journal.entries)
        duplicates = journal.sent - sum(counts.values())
        pairs = [
            ("gaps", len(found), len(journal.gaps()), found == journal.gaps()),
            ("late rows, each filling one", counts.get("late", 0), late, None),
            ("sequence resets", counts.get("reset", 0), resets, None),
            ("duplicates, kept out of trades", duplicates, journal.duplicates, None),
        ]
        self._console.print("[bold]4. Did every trade arrive?[/] Faults found, and put in:")
        table = _plain_table("", "found", "put in", "")
        same = True
        for what, seen, injected, exactly in pairs:
            equal = seen == injected if exactly is None else exactly
            same &= equal
            mark = "[green]the same[/]" if equal else "[red]DIFFERENT[/]"
            table.add_row(what, str(seen), str(injected), mark)
        self._console.print(Padding(table, INDENT))
        for symbol, first, last in found[:GAPS_SHOWN]:
            self._console.print(
                f"   {symbol}: sequences {first}..{last} were missing ({last - first + 1})",
                highlight=False,
            )
        if len(found) > GAPS_SHOWN:
            self._console.print(f"   ... and {len(found) - GAPS_SHOWN} more gaps", highlight=False)
        return same

    def _audit(self) -> bool:
        self._console.print("[bold]5. Audit[/] (k2 verify): every offset once, no sequence twice:")
        report = inspect(self._settings, Console(stderr=True))
        errors = [finding for finding in report.findings if finding.severity == "error"]
        for finding in errors:
            self._console.print(f"   [red]{finding.kind}[/]: {finding.detail}", soft_wrap=True)
        if report.passed:
            self._console.print(
                f"   [green]passed[/]: {report.rows:,} records of {len(report.sources)} partitions "
                f"in {report.files} files, none lost, none twice",
                highlight=False,
            )
        return report.passed


def _plain_table(*columns: str) -> Table:
    return Table(*columns, box=None, padding=(0, 2, 0, 0), header_style="dim")


def _iso(time: dt.datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%MZ")


def _text(name: str, value: Any) -> str:
    """A cell: times of the day without their date, a mean price to the tenth of a cent."""
    if name in ("start", "ts_event"):
        seconds, ns = divmod(value, NS)
        clock = f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%H:%M:%S}"
        return f"{clock}.{ns:09}" if name == "ts_event" else clock
    return f"{float(value):.4f}" if name == "vwap" and value is not None else str(value)


class _Sending(threading.Thread):
    """The feed, beside the progress bars."""

    def __init__(self, simulation: Simulation, settings: Settings) -> None:
        super().__init__(daemon=True)
        self._simulation, self._settings = simulation, settings
        self._error: BaseException | None = None
        self.sent = 0
        self.done: Produced | None = None

    def run(self) -> None:
        topic = TRADES.topic(EXCHANGE)
        try:
            self.done = produce(self._simulation, topic, self._settings, self._progress)
        except BaseException as exc:
            self._error = exc

    def _progress(self, count: int) -> None:
        self.sent = count

    def check(self) -> None:
        """Raise what the feed failed with."""
        if self._error is not None:
            raise self._error
