"""`k2 gaps`: what is missing, came twice or at an odd hour, and what an operator says to it."""

from __future__ import annotations

import click
from rich import box
from rich.table import Table

from k2.cli.output import as_of_of, bounds, console, form_of, note, opened, ranged, run, write
from k2.lake.acceptances import accept as accepted
from k2.lake.catalog import open_catalog
from k2.query.gaps import Selection
from k2.query.rows import Rows, Stop
from k2.query.times import date, iso
from k2.schemas import GAP_KINDS, GAP_STATUSES
from k2.sequence import SEVERITIES
from k2.settings import load

__all__ = ["gaps"]


@click.group(invoke_without_command=True)
@click.option("--symbol", "symbols", metavar="S", multiple=True, help="Of this symbol; repeatable.")
@click.option("--session", metavar="DATE", help="Of this session only, such as 2014-03-10.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(GAP_KINDS), help="Repeatable.")
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice(GAP_STATUSES), help="Repeatable."
)
@click.option(
    "--severity", "severities", multiple=True, type=click.Choice(SEVERITIES), help="Repeatable."
)
@click.option("--history", metavar="ID", help="All rows of this finding, not its newest alone.")
@ranged
@click.pass_context
def gaps(
    context: click.Context,
    symbols: tuple[str, ...],
    session: str | None,
    kinds: tuple[str, ...],
    statuses: tuple[str, ...],
    severities: tuple[str, ...],
    history: str | None,
    exchange: str | None,
    range_: str | None,
    start: str | None,
    end: str | None,
    as_of: str | None,
    limit: int | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show the gap ledger: each finding as it stands now, newest last.

    START and END are the time at which it was seen. A table of the newest 20 for people; with
    --json or --csv all of them, with the columns of /v1/gaps.

    \b
    k2 gaps --status open --status partly_filled --severity page --severity critical
    k2 gaps --symbol BHP --session 2014-03-10 --json | jq .remaining
    k2 gaps --history 91f0c2d9a1b34c5e8f70616263646566
    k2 gaps accept 91f0c2d9a1b34c5e8f70616263646566 --reason "the venue cancelled them"
    """
    if context.invoked_subcommand is not None:
        return
    form, most = form_of(as_json, as_csv, limit)
    day = None if session is None else date("session", session)
    which = Selection(
        exchange, symbols, day, *bounds(start, end, range_), kinds, statuses, severities, history
    )
    pinned = as_of_of(as_of)
    with opened() as (engine, stop):
        rows = run(stop, lambda: engine.gaps(which, most, stop, pinned))
        if form is None:
            _show(rows, stop)
        else:
            write(rows, form, stop, (), newest=True)


def _show(rows: Rows, stop: Stop) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("seen (UTC)", "exchange", "symbol", "session", "kind", "status", "severity"):
        table.add_column(name)
    for name in ("first", "last", "count", "remaining"):
        table.add_column(name, justify="right")
    for name in ("offsets", "id", "operator"):
        table.add_column(name)
    while (batch := run(stop, rows.next_batch)) is not None:
        for row in batch.to_pylist():
            table.add_row(
                iso(row["seen_at"]),
                row["exchange"],
                row["symbol"] or "",
                str(row["session"]),
                row["kind"],
                row["status"],
                row["severity"],
                str(row["missing_first"]),
                str(row["missing_last"]),
                str(row["count"]),
                str(row["remaining_count"]) if row["kind"] == "gap" else "",
                f"{row['kafka_topic']}[{row['kafka_partition']}]"
                f"@{row['from_offset']}..{row['to_offset']}",
                row["gap_id"],
                f"{row['operator']}: {row['reason']}" if row["operator"] else "",
            )
    console().print(table)
    if rows.truncated:
        note(f"only the newest {table.row_count:,}; there are more (--limit)")
    elif table.row_count == 0:
        note("no findings")


@gaps.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", metavar="TEXT", required=True, help="Why; kept in the ledger.")
def accept(ids: tuple[str, ...], reason: str) -> None:
    """Say of findings that they are all right: all of those named, or none if one cannot be.

    They are then `accepted`, of severity info, with who, when and why. A record that comes late
    all the same makes a gap `partly_filled` or `filled` again.

    \b
    k2 gaps accept 91f0c2d9a1b34c5e8f70616263646566 --reason "the venue cancelled them"
    """
    settings = load()
    with opened():
        rows = accepted(open_catalog(settings), settings, list(dict.fromkeys(ids)), reason)
    for row in rows:
        click.echo(
            f"{row['gap_id']}: {row['kind']} of {row['exchange']} {row['symbol'] or ''}"
            f" {row['missing_first']}..{row['missing_last']}: accepted by {row['operator']}"
        )
