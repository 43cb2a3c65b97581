"""`k2 resume`: what waits behind a critical finding, and the word that lets it go on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click
from rich import box
from rich.table import Table

from k2.cli.output import console, note, opened
from k2.errors import BadQuery
from k2.lake.acceptances import paused
from k2.lake.acceptances import resume as resumed
from k2.lake.catalog import open_catalog
from k2.settings import load

__all__ = ["resume", "show_paused"]


@click.command()
@click.argument("ids", nargs=-1, metavar="[GAP_ID]...")
@click.option("--exchange", metavar="E", help="All that wait for findings of this exchange.")
@click.option("--all", "everything", is_flag=True, help="All that wait.")
@click.option("--reason", metavar="TEXT", help="Why; kept in the ledger.")
def resume(
    ids: tuple[str, ...], exchange: str | None, everything: bool, reason: str | None
) -> None:
    """Let partitions go on that wait behind critical findings (K2_ON_CRITICAL).

    Without arguments it shows what waits. The finding stays open: what comes late still fills it.
    `k2 gaps accept` lets a partition go on too. A worker that has the partition hears of it within
    seconds; whoever reads it later does not wait for that finding again.

    \b
    k2 resume
    k2 resume 91f0c2d9a1b34c5e8f70616263646566 --reason "the venue confirms the loss"
    k2 resume --exchange ASX --reason "line B is dead, line A goes on"
    """
    if sum(map(bool, (ids, exchange, everything))) > 1:
        raise BadQuery("id", "ids, --exchange or --all: one of them")
    settings = load()
    with opened():
        catalog = open_catalog(settings)
        chosen = list(dict.fromkeys(ids))
        if not chosen:
            waiting = paused(catalog, settings)
            if not (exchange or everything):
                _show(waiting)
                return
            chosen = [row["gap_id"] for row in waiting if exchange in (None, row["exchange"])]
        if not chosen:
            note(f"nothing waits{f' for {exchange}' if exchange else ''}")
            return
        if reason is None:
            raise BadQuery("reason", "missing: say why (--reason TEXT)")
        rows = resumed(catalog, settings, chosen, reason)
    for row in rows:
        click.echo(
            f"{row['gap_id']}: {row['kafka_topic']}[{row['kafka_partition']}] goes on"
            f" at offset {row['kafka_offset']}, by {row['operator']}"
        )


def _show(waiting: list[dict[str, Any]]) -> None:
    if not waiting:
        note("nothing waits")
        return
    show_paused(waiting)
    note("name ids, --exchange or --all, with --reason, to let them go on")


def show_paused(waiting: Iterable[dict[str, Any]]) -> None:
    """A table for people of findings behind which partitions wait, rows of GAPS."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("paused", "seen (UTC)", "exchange", "symbol", "kind"):
        table.add_column(name)
    for name in ("first", "last", "count"):
        table.add_column(name, justify="right")
    table.add_column("id")
    for row in waiting:
        table.add_row(
            f"{row['kafka_topic']}[{row['kafka_partition']}]@{row['kafka_offset']}",
            f"{row['seen_at']:%Y-%m-%dT%H:%M:%S.%fZ}",
            row["exchange"],
            row["symbol"] or "",
            row["kind"],
            *(str(row[name]) for name in ("missing_first", "missing_last", "count")),
            row["gap_id"],
        )
    console().print(table)
