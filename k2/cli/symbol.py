"""`k2 symbol`: what the workers know live of one symbol, asked over HTTP."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import click
import orjson
from rich import box
from rich.table import Table

from k2.cli.ask import ask
from k2.cli.output import console
from k2.query.times import iso

__all__ = ["symbol"]

_SESSION = (
    "session", "trades", "quotes", "open", "high", "low", "close", "vwap", "volume", "notional",
)  # fmt: skip
_TRADE = ("price", "size", "side", "sequence", "session", "ts_event")
_QUOTE = ("bid_size", "bid_price", "ask_price", "ask_size", "sequence", "session", "ts_event")
_SEQUENCES = (
    "health", "session", "last_sequence", "open_gaps", "missing", "late", "duplicates", "resets",
)  # fmt: skip


@click.command()
@click.argument("exchange")
@click.argument("symbol")
@click.option("--bars", is_flag=True, help="The one-minute bars of the running session too.")
@click.option("--url", metavar="URL", help="A worker; default: that of this machine's settings.")
@click.option("--json", "as_json", is_flag=True, help="The answer of /v1/symbols as it is.")
def symbol(exchange: str, symbol: str, bars: bool, url: str | None, as_json: bool) -> None:
    """Show what is known now of SYMBOL on EXCHANGE: last trade and quote, session, gaps.

    Any worker answers, with what it and the others have read, committed or not yet.

    \b
    k2 symbol ASX BHP
    k2 symbol ASX BHP --json | jq .session.vwap
    """
    place = "/".join(urllib.parse.quote(part, safe="") for part in (exchange, symbol))
    known = ask(url, f"/v1/symbols/{place}", {"bars": "true"} if bars else {})
    if as_json:
        click.echo(orjson.dumps(known))
        return
    _show("session", _SESSION, known["session"])
    _show("last trade", _TRADE, known["trade"])
    _show("last quote", _QUOTE, known["quote"])
    for kind, state in known["sequences"].items():
        _show(f"sequences of {kind}", _SEQUENCES, state)
    if known.get("bars"):
        _list_bars(known["bars"])


def _show(title: str, names: Sequence[str], values: Mapping[str, Any] | None) -> None:
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    for name in names:
        value = (values or {}).get(name)
        if value is not None:
            table.add_row("time (UTC)" if name == "ts_event" else name, _readable(name, value))
    console().print(table if table.row_count else f"{title}: none", "")


def _list_bars(bars: Sequence[Mapping[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for name in bars[0]:
        table.add_column("time (UTC)" if name == "start" else name, justify="right")
    for bar in bars:
        table.add_row(*(_readable(name, value) for name, value in bar.items()))
    console().print(table)


def _readable(name: str, value: Any) -> str:
    if name in ("ts_event", "start"):
        return iso(value)
    return "" if value is None else str(value)
