"""`k2 silence`: the symbols and topics that a worker has not heard of for too long."""

from __future__ import annotations

import time
import urllib.parse
import urllib.request
from typing import Any

import click
import orjson
from rich import box
from rich.table import Table

from k2.cli.output import console, note
from k2.errors import K2Error
from k2.query.times import iso
from k2.settings import load

__all__ = ["silence"]

_TIMEOUT_S = 10.0


@click.command()
@click.option("--exchange", metavar="E", help="Of this exchange only, such as ASX.")
@click.option("--url", metavar="URL", help="The worker to ask; else the one of these settings.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as /v1/silence has it.")
def silence(exchange: str | None, url: str | None, as_json: bool) -> None:
    """Show which symbols and topics have been silent for longer than K2_SILENCE_LIMITS.

    A worker knows of its own partitions only: with several, ask each of them.

    \b
    k2 silence --exchange ASX
    k2 silence --url http://127.0.0.1:6067 --json | jq .topics
    """
    said = _ask(url or load().url, exchange)
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


def _ask(url: str, exchange: str | None) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise K2Error(f"{url}: not a URL of http or https")
    query = f"?{urllib.parse.urlencode({'exchange': exchange})}" if exchange else ""
    place = f"{url.rstrip('/')}/v1/silence{query}"
    try:
        with urllib.request.urlopen(place, timeout=_TIMEOUT_S) as answer:
            said: dict[str, Any] = orjson.loads(answer.read())
    except (OSError, ValueError) as exc:
        raise K2Error(f"{place}: {exc}: does a worker run there?") from exc
    return said
