"""`k2 snapshots`: which snapshots the tables still have."""

from __future__ import annotations

import click

from k2.cli.output import bounds, form_of, opened, run, write
from k2.query.engine import TABLES

__all__ = ["snapshots"]

SHOWN = ("table", "snapshot_id", "committed_at", "operation", "added", "rows", "valid_through")


@click.command()
@click.option("--table", "tables", multiple=True, type=click.Choice(TABLES), help="Repeatable.")
@click.option("--range", "range_", metavar="R", help="FIRST:END instead of them, such as -1h:now.")
@click.option("--start", metavar="T", help="Committed at this time or later.")
@click.option("--end", metavar="T", help="Committed before.")
@click.option("--limit", metavar="N", type=int, help="Newest N only. Default: 20 in a table.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line (NDJSON).")
@click.option("--csv", "as_csv", is_flag=True, help="CSV with a header.")
def snapshots(
    tables: tuple[str, ...],
    range_: str | None,
    start: str | None,
    end: str | None,
    limit: int | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show the snapshots of the tables, newest last: what `--as-of` can name.

    ADDED are the rows that a commit brought, ROWS all that the table had then. Before VALID_THROUGH
    it had every record of Kafka's.

    \b
    k2 snapshots --table trades
    k2 trades --symbol BHP --as-of $(k2 snapshots --table trades --json | head -1 | jq .snapshot_id)
    """
    form, most = form_of(as_json, as_csv, limit)
    since, until = bounds(start, end, range_)
    with opened() as (engine, stop):
        rows = run(stop, lambda: engine.snapshots(tables, since, until, most))
        write(rows, form, stop, SHOWN, newest=True)
