"""`k2 trades`, `k2 bars`, `k2 status`: the tables' rows, read without a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import click
import orjson
import pyarrow as pa
from pyiceberg.exceptions import NoSuchTableError
from rich import box
from rich.console import Console
from rich.table import Table

from k2.errors import BadQuery, CatalogUnavailable
from k2.lake.catalog import open_catalog
from k2.query.engine import Engine
from k2.query.formats import Encoder, plain
from k2.query.rows import Rows, Stop
from k2.query.times import interval_ns, iso, time_ns
from k2.settings import load

__all__ = ["bars", "status", "trades"]

#: Rows of a table for people, unless `--limit` says otherwise.
LIMIT_SHOWN = 20
#: A table is not cut to the terminal's width: a digit less would be another price.
WIDTH_MAX = 1000
_LOOK_EVERY_S = 0.1
_STOP_EVERY_S = 0.02

TRADES_SHOWN = (
    "ts_event", "exchange", "symbol", "price", "size", "side", "sequence", "verdict",
)  # fmt: skip

_T = TypeVar("_T")
_Command = Callable[..., None]


def _ranged(command: _Command) -> _Command:
    """The options that every command with rows has, in the order of the help."""
    shared = (
        click.option("--exchange", metavar="E", help="Of this exchange only, such as ASX."),
        click.option(
            "--start", metavar="T", help="First moment: ISO 8601 (UTC without a zone) or ns."
        ),
        click.option("--end", metavar="T", help="First moment no longer asked for."),
        click.option(
            "--limit",
            metavar="N",
            type=int,
            help=f"Rows at most. Default: {LIMIT_SHOWN} in a table, else K2_QUERY_ROWS_MAX.",
        ),
        click.option("--json", "as_json", is_flag=True, help="One JSON object a line (NDJSON)."),
        click.option("--csv", "as_csv", is_flag=True, help="CSV with a header."),
    )
    for option in reversed(shared):
        command = option(command)
    return command


@click.command()
@click.option(
    "--symbol", "symbols", metavar="S", multiple=True, help="Of this symbol only; repeat for more."
)
@_ranged
def trades(
    symbols: tuple[str, ...],
    exchange: str | None,
    start: str | None,
    end: str | None,
    limit: int | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show the trades of [START, END), oldest first, from the committed snapshot.

    A table of the first 20 for people; with --json or --csv all of them, with the columns of
    /v1/trades: prices exact, times in ns. A note on stderr says when a limit cut rows off.

    \b
    k2 trades --symbol BHP --start 2014-03-10T00:00 --end 2014-03-10T00:05
    k2 trades --symbol BHP --symbol RIO --json | jq -r .price
    """
    form, most = _form(as_json, as_csv, limit)
    since, until = _bounds(start, end)
    with _engine() as (engine, stop):
        rows = _run(
            stop,
            lambda: engine.trades(exchange, symbols or None, since, until, most, stop=stop),
        )
        _write(rows, form, stop, TRADES_SHOWN)


@click.command()
@click.option("--symbol", metavar="S", required=True, help="Symbol, such as BHP.")
@click.option(
    "--interval", metavar="I", default="1m", show_default=True, help="250ms, 1s, 5m, 1h, 1d, ..."
)
@_ranged
def bars(
    symbol: str,
    interval: str,
    exchange: str | None,
    start: str | None,
    end: str | None,
    limit: int | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show open, high, low, close, volume and vwap of one symbol's trades in [START, END).

    Bars without a trade are left out. Days are the exchange's sessions and start at its midnight.
    A table of the first 20 for people; with --json or --csv all of them.

    \b
    k2 bars --symbol BHP --interval 5m --start 2014-03-10 --end 2014-03-11
    k2 bars --symbol BHP --interval 1d --csv > days.csv
    """
    form, most = _form(as_json, as_csv, limit)
    since, until = _bounds(start, end)
    step = interval_ns("interval", interval)
    with _engine() as (engine, stop):
        rows = _run(
            stop, lambda: engine.bars(exchange, symbol, since, until, step, most, stop=stop)
        )
        _write(rows, form, stop, tuple(rows.schema.names))


@click.command()
@click.option("--verdicts", is_flag=True, help="Count trades by verdict too; reads every file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(verdicts: bool, as_json: bool) -> None:
    """Show what is committed: rows, files, snapshot, age, and where each partition goes on.

    All but the verdicts comes from metadata, at once for any size. A gap is a place where the
    venue's sequence jumped; `k2 verify` checks every row.

    \b
    k2 status --verdicts
    k2 status --json | jq .commit_age_seconds
    """
    with _engine() as (engine, stop):
        state = engine.status()
        if verdicts:
            state["verdicts"] = _run(stop, lambda: engine.verdicts(stop))
    if as_json:
        click.echo(orjson.dumps(state))
    else:
        _show_status(state)


@contextmanager
def _engine() -> Iterator[tuple[Engine, Stop]]:
    """An engine and the stop of its one query; Ctrl-C ends quietly.

    Raises:
        CatalogUnavailable: nothing is there yet, and how to make it; or it cannot be read.
    """
    settings = load()
    # The URI itself may hold a password.
    place = "the catalog of K2_CATALOG_URI" if settings.catalog_uri else settings.data
    hint = f"no tables in {place}: run `k2 init`, or `k2 up` (K2_DATA names the folder)"
    if not settings.catalog_uri and not (settings.data / "catalog.db").exists():
        raise CatalogUnavailable(hint)  # to open the catalog would make it
    engine = Engine(open_catalog(settings), settings)
    try:
        yield engine, Stop()
    except CatalogUnavailable as exc:
        if isinstance(exc.__cause__, NoSuchTableError):
            raise CatalogUnavailable(hint) from exc
        raise
    finally:
        engine.close()


def _run(stop: Stop, call: Callable[[], _T]) -> _T:
    """Run `call` in a thread, so that Ctrl-C is heard at once; it stops the query."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(call)
        try:
            # A signal may come to any thread, and only a main thread that wakes up hears of it.
            while not future.done():
                wait([future], _LOOK_EVERY_S)
            return future.result()
        finally:
            while not future.done():
                stop.now()
                wait([future], _STOP_EVERY_S)


def _form(as_json: bool, as_csv: bool, limit: int | None) -> tuple[str | None, int | None]:
    """The format (None: a table) and its limit (None: the engine's own)."""
    if as_json and as_csv:
        raise BadQuery("csv", "not together with json")
    if as_json or as_csv:
        return "ndjson" if as_json else "csv", limit
    return None, min(LIMIT_SHOWN, load().query_rows_max) if limit is None else limit


def _bounds(start: str | None, end: str | None) -> tuple[int | None, int | None]:
    return (
        None if start is None else time_ns("start", start),
        None if end is None else time_ns("end", end),
    )


def _write(rows: Rows, form: str | None, stop: Stop, shown: tuple[str, ...]) -> None:
    if form is None:
        count = _show(rows, stop, shown)
    else:
        encoder = Encoder(form, rows.schema, rows.snapshot_id, rows.truncated)
        click.echo(encoder.begin(), nl=False)
        while (batch := _run(stop, rows.next_batch)) is not None:
            click.echo(encoder.rows(batch), nl=False)
        count = encoder.count
    if rows.truncated:
        _note(f"only the first {count:,} rows; there are more (--limit, K2_QUERY_ROWS_MAX)")
    elif count == 0:
        _note("no rows")


def _show(rows: Rows, stop: Stop, shown: tuple[str, ...]) -> int:
    table = Table(box=box.SIMPLE_HEAD)
    for name in shown:
        numeric = not pa.types.is_string(rows.schema.field(name).type)
        table.add_column(_title(name), justify="right" if numeric else "left")
    while (batch := _run(stop, rows.next_batch)) is not None:
        columns = [_readable(name, batch.column(name)) for name in shown]
        for cells in zip(*columns, strict=True):
            table.add_row(*cells)
    _console().print(table)
    return table.row_count


def _title(name: str) -> str:
    return "time (UTC)" if name in ("ts_event", "start") else name


def _readable(name: str, column: pa.Array) -> list[str]:
    """Cells as people read them: times as dates, decimals without zeros at the end."""
    if _title(name) != name:
        return [iso(ns) for ns in column.to_pylist()]
    values = plain(column) if pa.types.is_decimal(column.type) else column
    return ["" if value is None else str(value) for value in values.to_pylist()]


def _console() -> Console:
    return Console(width=WIDTH_MAX, highlight=False, markup=False, emoji=False)


def _note(text: str) -> None:
    click.echo(f"k2: {text}", err=True)


def _show_status(state: dict[str, Any]) -> None:
    console = _console()
    age = state["commit_age_seconds"]
    facts = {
        "table": state["table"],
        "rows": f"{state['rows']:,}",
        "rejects": f"{state['rejects']:,}",
        "files": f"{state['files']:,}",
        "snapshot": "none yet" if age is None else state["snapshot_id"],
        "last commit": "never" if age is None else f"{age:,.1f} s ago, {iso(state['snapshot_ts'])}",
        **{f"verdict {name}": f"{n:,}" for name, n in state.get("verdicts", {}).items()},
    }
    table = Table(box=None, show_header=False)
    for name, value in facts.items():
        table.add_row(name, str(value))
    console.print(table)
    if state["offsets"]:
        sources = Table("topic", "partition", "next offset", "cluster", box=box.SIMPLE_HEAD)
        for s in state["offsets"]:
            cells = (s["topic"], s["partition"], s["next_offset"], s["cluster"])
            sources.add_row(*map(str, cells))
        console.print(sources)
