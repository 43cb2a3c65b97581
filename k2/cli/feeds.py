"""`k2 load` and `k2 simulate`: records into Kafka, from files or made up."""

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
from k2.feeds.asx import BadRow, read
from k2.feeds.instruments import read_instruments
from k2.feeds.producer import Produced, produce
from k2.feeds.simulate import Simulation
from k2.schemas import KINDS, QUOTES, TRADES
from k2.settings import Settings
from k2.settings import load as load_settings
from k2.topics import INSTRUMENTS_TOPIC

__all__ = ["load", "simulate"]

BAD_ROWS_SHOWN = 20
_JSON_HELP = "Print the summary on stdout, a JSON object for each topic."
_RATE_HELP = "Records per second; default: as fast as the broker takes them."


@click.command()
@click.option(
    "--format",
    "kind_of_file",
    type=click.Choice(["asx"]),
    help="Format of trades and quotes; of instruments the header tells.",
)
@click.option(
    "--kind",
    "name",
    type=click.Choice([*(kind.name for kind in KINDS), "instruments"]),
    required=True,
    help="What the files hold.",
)
@click.option("--symbol", help="Symbol of every trade or quote, such as BHP.")
@click.option(
    "--exchange",
    default="ASX",
    show_default=True,
    help="Exchange of every row; of instruments, where the file does not say.",
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help=_RATE_HELP)
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def load(
    kind_of_file: str | None,
    name: str,
    symbol: str | None,
    exchange: str,
    rate: float | None,
    as_json: bool,
    files: tuple[Path, ...],
) -> None:
    """Load FILEs with trades or quotes of one symbol into the exchange's topic; or instruments.

    Every FILE is read before the first row is sent. Bad rows are listed as file:line: reason and
    left out; the rest is sent, and the exit code is 1. A row's number within its day is its
    sequence: a bad row shows as a gap, which the repaired file fills when it is loaded again. Name
    all FILEs of a day at once, in their order.

    Instruments come as CSV with a header: ASX's company_info.csv, or columns named as in
    /v1/instruments, in any order, symbol and whatever is known. The newest row of a symbol counts,
    and replaces all of the former one.

    \b
    k2 load --kind trades --format asx --symbol BHP 7078.csv
    k2 load --kind instruments company_info.csv
    """
    settings = load_settings()
    if name == "instruments":
        if kind_of_file or symbol or rate:
            raise click.UsageError("--format, --symbol and --rate are not for instruments")
        _load_instruments(files, exchange, settings, as_json)
        return
    if not (kind_of_file and symbol):
        raise click.UsageError(f"--kind {name} needs --format and --symbol")
    (kind,) = (kind for kind in KINDS if kind.name == name)
    tables: list[pa.Table] = []
    bad: list[BadRow] = []
    rows_before: dict[str, int] = {}
    for path in files:
        table, rejected = read(kind, path, symbol, exchange, rows_before)
        tables.append(table)
        bad += rejected
    total = sum(table.num_rows for table in tables)
    topic = kind.topic(exchange)
    done = _produce(tables, total, topic, settings, rate)
    _finish(done, name, topic, as_json, bad, files)


def _load_instruments(
    files: tuple[Path, ...], exchange: str, settings: Settings, as_json: bool
) -> None:
    read = [read_instruments(path, exchange) for path in files]
    tables = [table for table, _ in read]
    bad = [row for _, rows in read for row in rows]
    total = sum(table.num_rows for table in tables)
    done = _produce(tables, total, INSTRUMENTS_TOPIC, settings, None)
    _finish(done, "instruments", INSTRUMENTS_TOPIC, as_json, bad, files)


def _finish(
    done: Produced,
    name: str,
    topic: str,
    as_json: bool,
    bad: list[BadRow],
    files: tuple[Path, ...],
) -> None:
    """Tell what was sent and what was not; the exit code is 1 if there was a bad row."""
    for row in bad[:BAD_ROWS_SHOWN]:
        click.echo(f"{row.file}:{row.line}: {row.reason}", err=True)
    if bad:
        shown = f", the first {BAD_ROWS_SHOWN} shown" if len(bad) > BAD_ROWS_SHOWN else ""
        click.echo(f"bad rows left out: {len(bad)}{shown}", err=True)
    _summary(done, name, topic, as_json, {"bad_rows": len(bad), "files": len(files)})
    if bad:
        sys.exit(1)


@click.command()
@click.option(
    "--trades", type=click.IntRange(1), default=100_000, show_default=True, help="Trades made."
)
@click.option(
    "--quotes", type=click.IntRange(0), default=0, show_default=True, help="Quotes made too."
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
@click.option("--exchange", default="SIM", show_default=True, help="Exchange of every row.")
@click.option(
    "--date", type=click.DateTime(["%Y-%m-%d"]), help="Trading date; default: today (UTC)."
)
@click.option("--json", "as_json", is_flag=True, help=_JSON_HELP)
def simulate(
    trades: int,
    quotes: int,
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
    """Make up a trading day and send it to the exchange's topics: trades, then quotes if asked for.

    Equal options give equal records: sending a day twice gives duplicates, and so does another day
    of the same exchange and date, whose symbols and sequences are the same. Faults are injected on
    request, as many into the quotes as into the trades, and the journal says exactly what K2 has to
    find in an empty topic.
    """
    day = (date or dt.datetime.now(dt.UTC)).date()
    settings = load_settings()
    faults = {"gaps": gaps, "duplicates": duplicates, "late": late, "resets": resets}
    days = {
        kind: Simulation(
            seed,
            symbols,
            rows,
            exchange,
            day,
            zone=settings.exchange_zones.get(exchange, "UTC"),
            reset_window_ms=settings.reset_window_ms,
            **faults,
            kind=kind,
        )
        for kind, rows in ((TRADES, trades), (QUOTES, quotes))
        if rows
    }
    sent = {
        kind: _produce(simulation, simulation.journal.sent, kind.topic(exchange), settings, rate)
        for kind, simulation in days.items()
    }
    if journal is not None:
        journals = {kind.name: simulation.journal for kind, simulation in days.items()}
        try:
            journals.pop(TRADES.name).to_json(journal, **journals)
        except OSError as exc:
            raise FeedError(f"{journal}: cannot be written: {exc.strerror or exc}") from exc
    for kind, done in sent.items():
        more = {"date": day.isoformat(), "seed": seed} | faults
        _summary(done, kind.name, kind.topic(exchange), as_json, more)


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


def _summary(done: Produced, name: str, topic: str, as_json: bool, more: dict[str, object]) -> None:
    speed = done.count / done.seconds if done.seconds else 0.0
    click.echo(
        f"{done.count:,} {name} ({done.bytes:,} bytes) to {topic} "
        f"in {done.seconds:.2f} s: {speed:,.0f} a second",
        err=True,
    )
    if as_json:
        click.echo(orjson.dumps({"topic": topic, **asdict(done), **more}).decode())
