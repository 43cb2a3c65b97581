"""`k2 silence`: the symbols and topics that a worker has not heard of for too long."""

from __future__ import annotations

import time

import click
import orjson
from rich import box
from rich.table import Table

from k2.cli.ask import ask
from k2.cli.output import console, note
from k2.query.times import iso

__all__ = ["silence"]


@click.command()
@click.option("--exchange", metavar="E", help="Of this exchange only, such as ASX.")
@click.option("--url", metavar="URL", help="The worker to ask; else the one of these settings.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as /v1/silence has it.")
def silence(exchange: str | None, url: str | None, as_json: bool) -> None:
    """Show which symbols and topics have been silent for longer than K2_SILENCE_LIMITS.

    A worker knows of its own partitions only: with several, ask each of them, or a query worker.

    \b
    k2 silence --exchange ASX
    k2 silence --url http://127.0.0.1:6067 --json | jq .topics
    """
    said = ask(url, "/v1/silence", {"exchange": exchange} if exchange else {})
    if as_json:
        click.echo(orjson.dumps(said))
        return
    if not said["limits"]:
        note("nothing is watched: K2_SILENCE_LIMITS")
    for name, limits in said["limits"].items():
        if not limits["open"]:
            note(f"{name} is closed")
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("exchange", "kind", "symbol", "last record (UTC)"):
        table.add_column(name)
    table.add_column("seconds ago", justify="right")
    now = time.time_ns()
    for row in [*said["topics"], *said["symbols"]]:
        last = row["last_ts_event"]
        symbol = f"all of {row['topic']}" if "topic" in row else row["symbol"] or ""
        times = ("", "") if last is None else (iso(last), f"{(now - last) / 1e9:,.0f}")
        table.add_row(row["exchange"], row["kind"], symbol, *times)
    if table.row_count:
        console().print(table)
    elif said["limits"]:
        note("nobody is silent")
