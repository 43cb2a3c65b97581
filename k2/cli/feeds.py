"""`k2 load` and `k2 simulate`: trades into Kafka, from files or made up."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click
import orjson
import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from k2.errors import FeedError
from k2.feeds.asx import BadRow, read_trades
from k2.feeds.producer import Produced, produce
from k2.feeds.simulate import Simulation
from k2.settings import Settings
from k2.settings import load as load_settings

__all__ = ["load", "simulate"]

BAD_ROWS_SHOWN = 20
_JSON_HELP = "Print the summary as one JSON object on stdout."
_RATE_HELP = "Trades per second; default: as fast as the broker takes them."


@click.command()
@click.option(
    "--format", "kind_of_file", type=click.Choice(["asx"]), required=True, help="File format."
)
@click.option("--kind", type=click.Choice(["trades"]), required=True, help="What the files hold.")
@click.option("--symbol", required=True, help="Symbol of every row, such as BHP.")
@click.option("--exchange", default="ASX", show_default=True, help="Exchange of every row.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help=_RATE_HELP)
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def load(
    kind_of_file: str,
    kind: str,
    symbol: str,
    exchange: str,
    rate: float | None,
    as_json: bool,
    files: tuple[Path, ...],
) -> None:
    """Load trade FILEs of one symbol into the exchange's topic.

    Every FILE is read before the first trade is sent. Bad rows are listed as file:line: reason and
    left out; the rest is sent, and the exit code is 1. A row's number within its day is its
    sequence: a bad row shows as a gap, which the repaired file fills when it is loaded again. Name
    all FILEs of a day at once, in their order.
    """
    settings = load_settings()
    tables: list[pa.Table] = []
    bad: list[BadRow] = []
    rows_before: dict[str, int] = {}
    for path in files:
        table, rejected = read_trades(path, symbol, exchange, rows_before)
        tables.append(table)
        bad += rejected
    total = sum(table.num_rows for table in tables)
    topic = settings.trades_topic(exchange)
    done = _produce(tables, total, topic, settings, rate)
    for row in bad[:BAD_ROWS_SHOWN]:
        click.echo(f"{row.file}:{row.line}: {row.reason}", err=True)
    if bad:
        shown = f", the first {BAD_ROWS_SHOWN} shown" if len(bad) > BAD_ROWS_SHOWN else ""
        click.echo(f"bad rows left out: {len(bad)}{shown}", err=True)
    _summary(done, topic, as_json, {"bad_rows": len(bad), "files": len(files)})
    if bad:
        sys.exit(1)


@click.command()
@click.option(
    "--trades", type=click.IntRange(1), default=100_000, show_default=True, help="Trades made."
)
@click.option(
    "--symbols", type=click.IntRange(1, 65_535), default=100, show_default=True, help="Symbols."
)
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides every byte."
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help=_RATE_HELP)
@click.option(
    "--gaps", type=click.IntRange(0), default=0, help="Runs of 1..50 sequences never sent."
)
@click.option("--duplicates", type=click.IntRange(0), default=0, help="Records sent twice.")
@click.option("--late", type=click.IntRange(0), default=0, help="Records sent after later ones.")
@click.option("--resets", type=click.IntRange(0), default=0, help="Symbols' sequences begun again.")
@click.option(
    "--journal", type=click.Path(path_type=Path), help="Write what was injected here (JSON)."
)
@click.option("--exchange", default="SIM", show_default=True, help="Exchange of every trade.")
@click.option(
    "--date", type=click.DateTime(["%Y-%m-%d"]), help="Trading date; default: today (UTC)."
)
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def simulate(
    trades: int,
    symbols: int,
    seed: int,
    rate: float | None,
    gaps: int,
    duplicates: int,
    late: int,
    resets: int,
    journal: Path | None,
    exchange: str,
    date: dt.datetime | None,
    as_json: bool,
) -> None:
    """Make up a trading day and send it to the exchange's topic.

    Equal options give equal trades: sending a day twice gives duplicates, and so does another day
    of the same exchange and date, whose symbols and sequences are the same. Faults are injected on
    request, and the journal says exactly what K2 has to find in an empty topic.
    """
    day = (date or dt.datetime.now(dt.UTC)).date()
    settings = load_settings()
    simulation = Simulation(
        seed,
        symbols,
        trades,
        exchange,
        day,
        zone=settings.exchange_zones.get(exchange, "UTC"),
        reset_window_ms=settings.reset_window_ms,
        gaps=gaps,
        duplicates=duplicates,
        late=late,
        resets=resets,
    )
    topic = settings.trades_topic(exchange)
    done = _produce(simulation, simulation.journal.sent, topic, settings, rate)
    if journal is not None:
        try:
            simulation.journal.to_json(journal)
        except OSError as exc:
            raise FeedError(f"{journal}: cannot be written: {exc.strerror or exc}") from exc
    faults = {"gaps": gaps, "duplicates": duplicates, "late": late, "resets": resets}
    _summary(done, topic, as_json, {"date": day.isoformat(), "seed": seed} | faults)


def _produce(
    tables: Iterable[pa.Table], total: int, topic: str, settings: Settings, rate: float | None
) -> Produced:
    """Produce with a progress bar on stderr; stdout stays clean for `--json`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(topic, total=total)
        return produce(tables, topic, settings, lambda n: bar.update(task, completed=n), rate)


def _summary(done: Produced, topic: str, as_json: bool, more: dict[str, object]) -> None:
    speed = done.count / done.seconds if done.seconds else 0.0
    click.echo(
        f"{done.count:,} trades ({done.bytes:,} bytes) to {topic} "
        f"in {done.seconds:.2f} s: {speed:,.0f} trades/s",
        err=True,
    )
    if as_json:
        click.echo(orjson.dumps({"topic": topic, **asdict(done), **more}).decode())
