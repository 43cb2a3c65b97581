"""`k2 trades`, `k2 quotes`, `k2 bars`, `k2 status`: the tables' rows, read without a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import orjson
from pyiceberg.exceptions import NoSuchTableError
from rich import box
from rich.table import Table

from k2.cli.output import (
    as_of_of,
    bounds,
    console,
    form_of,
    listed,
    note,
    opened,
    ranged,
    run,
    write,
)
from k2.cli.resume import show_paused
from k2.errors import CatalogUnavailable
from k2.lake.acceptances import paused
from k2.lake.catalog import open_catalog
from k2.query.bars import FILLS
from k2.query.times import interval_ns, iso
from k2.schemas import QUOTES, TRADES, Kind
from k2.settings import Settings, load

__all__ = ["bars", "quotes", "status", "trades"]

#: Columns of the table for people.
SHOWN = {
    TRADES: ("ts_event", "exchange", "symbol", "price", "size", "side", "sequence", "verdict"),
    QUOTES: (
        "ts_event", "exchange", "symbol", "bid_size", "bid_price", "ask_price", "ask_size",
        "sequence", "verdict",
    ),
}  # fmt: skip
SHOWN_QUOTED = (
    "ts_event", "exchange", "symbol", "price", "size", "bid_price", "ask_price", "spread",
    "quote_ts_event", "side_tick",
)  # fmt: skip

_HELP = """Show the {kind} of [START, END), oldest first, from the committed snapshot.

    A table of the first 20 for people; with --json or --csv all of them, with the columns of
    /v1/{kind}: prices exact, times in ns. A note on stderr says when a limit cut rows off.

    \b
    k2 {kind} --symbol BHP --start 2014-03-10T00:00 --end 2014-03-10T00:05
    k2 {kind} --symbol BHP --symbol RIO --json | jq -r .{column}
    """

_Command = Callable[..., None]

_COLUMNS = click.option(
    "--columns", "columns", metavar="A,B", callback=listed, help="These columns, in this order."
)


def _symbols(*, required: bool) -> Callable[[_Command], _Command]:
    return click.option(
        "--symbol",
        "symbols",
        metavar="S",
        multiple=True,
        required=required,
        help="Of this symbol only; repeat for more.",
    )


def _records(kind: Kind, column: str) -> click.Command:
    """The command that shows records of a kind; `column` is for its example."""

    @click.command(kind.name, help=_HELP.format(kind=kind.name, column=column))
    @_symbols(required=False)
    @_COLUMNS
    @ranged
    def show(
        symbols: tuple[str, ...],
        columns: list[str] | None,
        exchange: str | None,
        range_: str | None,
        start: str | None,
        end: str | None,
        as_of: str | None,
        limit: int | None,
        as_json: bool,
        as_csv: bool,
        with_: str | None = None,
    ) -> None:
        form, most = form_of(as_json, as_csv, limit)
        since, until = bounds(start, end, range_)
        what = exchange, symbols or None, since, until, most, columns
        pinned = as_of_of(as_of)
        with opened() as (engine, stop):
            if with_ is None:
                rows = run(stop, lambda: engine.records(kind, *what, stop, as_of=pinned))
            else:
                rows = run(stop, lambda: engine.quoted(*what, stop, as_of=pinned))
            shown = SHOWN[kind] if with_ is None else SHOWN_QUOTED
            write(rows, form, stop, tuple(columns or shown))

    return show


trades = click.option(
    "--with",
    "with_",
    type=click.Choice(["quote"]),
    help="Each with the quote that prevailed, spread, and side by the tick rule.",
)(_records(TRADES, "price"))
quotes = _records(QUOTES, "bid_price")


@click.command()
@_symbols(required=True)
@click.option(
    "--interval", metavar="I", default="1m", show_default=True, help="250ms, 1s, 5m, 1h, 1d, ..."
)
@click.option(
    "--fill",
    type=click.Choice(FILLS),
    default="none",
    show_default=True,
    help="What stands for an interval of a session without a trade.",
)
@click.option(
    "--conditions",
    metavar="C,-C",
    callback=listed,
    help="Only these trades, or all but `-` these: auction, off-market, regular, a venue's code.",
)
@_COLUMNS
@ranged
def bars(
    symbols: tuple[str, ...],
    interval: str,
    fill: str,
    conditions: list[str] | None,
    columns: list[str] | None,
    exchange: str | None,
    range_: str | None,
    start: str | None,
    end: str | None,
    as_of: str | None,
    limit: int | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show open, high, low, close, volume and vwap of the trades in [START, END), oldest first.

    Bars below a day begin with the session, those of days at the exchange's midnight.
    A table of the first 20 for people; with --json or --csv all of them.

    \b
    k2 bars --symbol BHP --interval 5m --start 2014-03-10 --end 2014-03-11
    k2 bars --symbol BHP --interval 1d --csv > days.csv
    k2 bars --symbol BHP --symbol RIO --fill previous --conditions=-off-market,-auction
    """
    form, most = form_of(as_json, as_csv, limit)
    since, until = bounds(start, end, range_)
    step, pinned = interval_ns("interval", interval), as_of_of(as_of)
    with opened() as (engine, stop):
        rows = run(
            stop,
            lambda: engine.bars(
                exchange,
                symbols,
                since,
                until,
                step,
                most,
                stop,
                fill=fill,
                conditions=conditions,
                columns=columns,
                as_of=pinned,
            ),
        )
        write(rows, form, stop, tuple(rows.schema.names))


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
    settings = load()
    with opened() as (engine, stop):
        state = engine.status()
        waiting = run(stop, lambda: _paused(settings))
        state["paused"] = None if waiting is None else [row["gap_id"] for row in waiting]
        tables = {TRADES: state, QUOTES: state[QUOTES.name]}
        if verdicts:
            for kind, table in tables.items():
                table["verdicts"] = run(stop, lambda: engine.verdicts(kind, stop))  # noqa: B023
    if waiting is None:
        note("no gap ledger: nobody knows what waits (`k2 init` makes it)")
    if as_json:
        click.echo(orjson.dumps(state))
        return
    for table in tables.values():
        _show_facts(table)
    if waiting:
        show_paused(waiting)
    _show_offsets([source for table in tables.values() for source in table["offsets"]])


def _paused(settings: Settings) -> list[dict[str, Any]] | None:
    """What waits; None: there is no gap ledger, as before a release that has one was started."""
    try:
        return paused(open_catalog(settings), settings)
    except CatalogUnavailable as exc:
        if isinstance(exc.__cause__, NoSuchTableError):
            return None
        raise


def _show_facts(state: dict[str, Any]) -> None:
    age = state["commit_age_seconds"]
    facts = {
        "table": state["table"],
        "rows": f"{state['rows']:,}",
        **({"rejects": f"{state['rejects']:,}"} if "rejects" in state else {}),
        "files": f"{state['files']:,}",
        "snapshot": "none yet" if age is None else state["snapshot_id"],
        "last commit": "never" if age is None else f"{age:,.1f} s ago, {iso(state['snapshot_ts'])}",
        **{f"verdict {name}": f"{n:,}" for name, n in state.get("verdicts", {}).items()},
    }
    table = Table(box=None, show_header=False)
    for name, value in facts.items():
        table.add_row(name, str(value))
    console().print(table)


def _show_offsets(offsets: list[dict[str, Any]]) -> None:
    if offsets:
        sources = Table("topic", "partition", "next offset", "cluster", box=box.SIMPLE_HEAD)
        for s in offsets:
            cells = (s["topic"], s["partition"], s["next_offset"], s["cluster"])
            sources.add_row(*map(str, cells))
        console().print(sources)
