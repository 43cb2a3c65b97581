"""`k2 trades`, `k2 quotes`, `k2 bars`, `k2 status`: the tables' rows, read without a worker."""

from __future__ import annotations

from typing import Any

import click
import orjson
from pyiceberg.exceptions import NoSuchTableError
from rich import box
from rich.table import Table

from k2.cli.output import as_of_of, bounds, console, form_of, note, opened, ranged, run, write
from k2.cli.resume import show_paused
from k2.errors import CatalogUnavailable
from k2.lake.acceptances import paused
from k2.lake.catalog import open_catalog
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

_HELP = """Show the {kind} of [START, END), oldest first, from the committed snapshot.

    A table of the first 20 for people; with --json or --csv all of them, with the columns of
    /v1/{kind}: prices exact, times in ns. A note on stderr says when a limit cut rows off.

    \b
    k2 {kind} --symbol BHP --start 2014-03-10T00:00 --end 2014-03-10T00:05
    k2 {kind} --symbol BHP --symbol RIO --json | jq -r .{column}
    """


def _records(kind: Kind, column: str) -> click.Command:
    """The command that shows records of a kind; `column` is for its example."""

    @click.command(kind.name, help=_HELP.format(kind=kind.name, column=column))
    @click.option(
        "--symbol",
        "symbols",
        metavar="S",
        multiple=True,
        help="Of this symbol only; repeat for more.",
    )
    @click.option("--columns", metavar="A,B", help="Of the table: these, in this order.")
    @ranged
    def show(
        symbols: tuple[str, ...],
        columns: str | None,
        exchange: str | None,
        range_: str | None,
        start: str | None,
        end: str | None,
        as_of: str | None,
        limit: int | None,
        as_json: bool,
        as_csv: bool,
    ) -> None:
        form, most = form_of(as_json, as_csv, limit)
        since, until = bounds(start, end, range_)
        of, pinned = symbols or None, as_of_of(as_of)
        names = None if columns is None else [name.strip() for name in columns.split(",")]
        with opened() as (engine, stop):
            rows = run(
                stop,
                lambda: engine.records(
                    kind, exchange, of, since, until, most, names, stop, as_of=pinned
                ),
            )
            write(rows, form, stop, tuple(names or SHOWN[kind]))

    return show


trades = _records(TRADES, "price")
quotes = _records(QUOTES, "bid_price")


@click.command()
@click.option("--symbol", metavar="S", required=True, help="Symbol, such as BHP.")
@click.option(
    "--interval", metavar="I", default="1m", show_default=True, help="250ms, 1s, 5m, 1h, 1d, ..."
)
@ranged
def bars(
    symbol: str,
    interval: str,
    exchange: str | None,
    range_: str | None,
    start: str | None,
    end: str | None,
    as_of: str | None,
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
    form, most = form_of(as_json, as_csv, limit)
    since, until = bounds(start, end, range_)
    step, pinned = interval_ns("interval", interval), as_of_of(as_of)
    with opened() as (engine, stop):
        rows = run(
            stop,
            lambda: engine.bars(
                exchange, symbol, since, until, step, most, stop=stop, as_of=pinned
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
