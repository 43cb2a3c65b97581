"""`k2 keys`: who may ask the workers of this data folder, or of K2_KEYS_FILE."""

from __future__ import annotations

import datetime as dt
import re

import click
import orjson
from rich import box
from rich.table import Table

from k2 import keyfile
from k2.cli.output import console, note
from k2.errors import BadQuery
from k2.query.times import time_ns
from k2.settings import load

__all__ = ["keys"]

_UNITS = {"h": "hours", "d": "days"}
_YEARS_MAX = 100


@click.group()
def keys() -> None:
    """API keys: workers ask for one as soon as there is one, and hear of changes in a second.

    A key is sent as `Authorization: Bearer KEY` or `X-API-Key: KEY`; K2's own commands send
    K2_API_KEY. Keys are kept hashed, in keys.ndjson of the data folder or at K2_KEYS_FILE.
    """


@keys.command()
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(keyfile.SCOPES),
    multiple=True,
    default=("read",),
    show_default=True,
    help="What it may: read the views, ask by SQL, see the worker's inside. Repeatable.",
)
@click.option("--expires", metavar="T", help="30d, 12h, or a moment (ISO 8601); else never.")
@click.option("--note", "about", metavar="TEXT", default="", help="Whose it is.")
def create(scopes: tuple[str, ...], expires: str | None, about: str) -> None:
    """Make a key and show it, this once, on stdout.

    \b
    k2 keys create --scope read --scope sql --expires 90d --note "research notebooks"
    """
    path, until = load().keys_path, None if expires is None else _until(expires)
    key, text = keyfile.create(path, scopes, until, about)
    click.echo(text)
    ends = "never expires" if until is None else f"expires at {keyfile.shown(until)}"
    note(f"key {key.id} ({_scopes(key)}) {ends}; only its hash is kept, in {path}")


@keys.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def revoke(ids: tuple[str, ...]) -> None:
    """Take keys back; workers refuse them within a second."""
    path = load().keys_path
    left = keyfile.revoke(path, ids)
    for number in dict.fromkeys(ids):
        click.echo(number)
    if not left:
        note(f"no key is left: nobody is let in, until one is made or {path} is removed and")
        note("the workers are restarted, on a loopback address")


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line (NDJSON).")
def list_(as_json: bool) -> None:
    """Show the keys, without what would let somebody in."""
    path = load().keys_path
    found = keyfile.read(path)
    if as_json:
        for key in found:
            click.echo(
                orjson.dumps(
                    {
                        "id": key.id,
                        "scopes": sorted(key.scopes),
                        "created": keyfile.shown(key.created),
                        "expires": keyfile.shown(key.expires),
                        "expired": key.is_expired(dt.datetime.now(dt.UTC)),
                        "note": key.note,
                    }
                )
            )
        return
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("id", "scopes", "created (UTC)", "expires (UTC)", "note"):
        table.add_column(name)
    for key in found:
        expires = keyfile.shown(key.expires) or "never"
        if key.is_expired(dt.datetime.now(dt.UTC)):
            expires += " expired"
        table.add_row(key.id, _scopes(key), keyfile.shown(key.created), expires, key.note)
    if found:
        console().print(table)
    else:
        note(f"no keys in {path}")


def _until(text: str) -> dt.datetime:
    now = dt.datetime.now(dt.UTC)
    if span := re.fullmatch(r"([0-9]{1,6})([hd])", text):
        until = now + dt.timedelta(**{_UNITS[span[2]]: int(span[1])})
    else:
        ns = time_ns("expires", text)
        until = dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=ns // 1000)
    if not now < until < now + dt.timedelta(days=365 * _YEARS_MAX):
        raise BadQuery("expires", f"{text!r} is not within the next {_YEARS_MAX} years")
    return until


def _scopes(key: keyfile.Key) -> str:
    return ",".join(scope for scope in keyfile.SCOPES if scope in key.scopes)
