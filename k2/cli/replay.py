"""`k2 replay`: trades and quotes together in event-time order, as NDJSON on stdout."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import aiohttp
import click
import orjson
import pyarrow as pa

from k2.cli.ask import refusal, worker
from k2.cli.output import bounds, note, opened
from k2.errors import BadQuery, PeerUnavailable
from k2.lake.catalog import open_catalog
from k2.replay.archive import Archive, Selection
from k2.replay.control import speed_of
from k2.replay.forms import form
from k2.replay.play import Play
from k2.schemas import KINDS
from k2.settings import load

__all__ = ["replay"]

#: Between two attempts to reach the worker.
_AGAIN_S = 1.0
#: Nothing for so long, though there are heartbeats: the connection is dead.
_SILENT_S = 30.0


@click.command()
@click.option(
    "--symbol", "symbols", metavar="S", multiple=True, help="Of this symbol only; repeat."
)
@click.option("--exchange", metavar="E", help="Of this exchange only, such as ASX.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice([k.name for k in KINDS]))
@click.option("--start", metavar="T", help="First moment: ISO 8601 (UTC without a zone) or ns.")
@click.option("--end", metavar="T", help="First moment no longer asked for.")
@click.option("--speed", default="0", metavar="X", help="Times as fast as time; 0: as it goes.")
@click.option("--cursor", metavar="C", help="Go on behind the record that has this cursor.")
@click.option("--follow", is_flag=True, help="Go on with what comes in; asks a worker.")
@click.option(
    "--url", metavar="URL", help="A worker to ask; default: nobody, or with --follow ours."
)
def replay(
    symbols: tuple[str, ...],
    exchange: str | None,
    kinds: tuple[str, ...],
    start: str | None,
    end: str | None,
    speed: str,
    cursor: str | None,
    follow: bool,
    url: str | None,
) -> None:
    """Replay trades and quotes of [START, END) by one clock over all symbols, as NDJSON.

    Each record has a cursor to go on behind it. The last line has the counts and a digest, the
    same for every replay of the same rows. Without --follow or --url no worker is needed.

    \b
    k2 replay --start 2014-03-10T00:00 --end 2014-03-10T00:05 --speed 10
    k2 replay --symbol BHP --follow | jq -r 'select(.type == "trade") | .price'
    """
    since, until = bounds(start, end)
    named = tuple(kind for kind in KINDS if not kinds or kind.name in kinds)
    which = Selection(named, exchange, symbols or None, since, until)
    pace = speed_of(speed)
    if follow or url:
        asked = {
            "symbol": ",".join(symbols), "exchange": exchange, "start": since, "end": until,
            "kind": ",".join(kind.name for kind in named), "speed": pace, "cursor": cursor,
            "follow": "true" if follow else "",
        }  # fmt: skip
        query = {name: str(value) for name, value in asked.items() if value not in (None, "")}
        place, headers = worker(url)
        asyncio.run(_asked(f"{place}/v1/replay", query, headers))
        return
    with opened():  # says what to do where there are no tables
        asyncio.run(_read(which, pace, cursor))


class _Pipe:
    """Standard output; blocks while whoever reads it is slow."""

    def __init__(self, which: Selection) -> None:
        self._form = form("ndjson", which.kinds)

    async def rows(self, rows: pa.Table) -> None:
        _write(self._form.rows(rows))

    async def say(self, what: dict[str, Any]) -> None:
        if what["type"] != "heartbeat":
            _write(self._form.say(what))
        _tell(what)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _tell(what: dict[str, Any]) -> None:
    if what["type"] == "replay_completed":
        counts = ", ".join(f"{what[name]:,} {name}" for name in ("trades", "quotes", "gaps"))
        note(f"completed: {counts}, {what['digest']}")


async def _read(which: Selection, speed: float, cursor: str | None) -> None:
    settings = load()
    archive = Archive(open_catalog(settings), settings)
    play = Play(archive, which, speed, cursor)
    try:
        await play.prepare()
        await play.run(_Pipe(which))
    finally:
        archive.close()


async def _asked(url: str, query: dict[str, str], headers: dict[str, str]) -> None:
    """Write what a worker gives; where it breaks off, go on by the last cursor.

    Raises:
        K2Error: the worker refuses what is asked.
        PeerUnavailable: it cannot be reached, or cannot answer now, and never has.
    """
    limit = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=_SILENT_S)
    async with aiohttp.ClientSession(timeout=limit, headers=headers) as client:
        while True:
            try:
                # The key is for this worker, not for another place.
                async with client.get(url, params=query, allow_redirects=False) as answer:
                    if answer.status != 200:
                        body, reason = await answer.read(), str(answer.reason)
                        raise refusal(url, answer.status, body, reason)
                    if await _piped(answer.content, query):
                        return
            except (aiohttp.ClientError, TimeoutError) as exc:
                if "cursor" not in query:
                    raise PeerUnavailable(f"{url}: {exc}: is a worker running there?") from exc
                note(f"{exc or type(exc).__name__}; going on in {_AGAIN_S:g} s")
            except PeerUnavailable as exc:
                if "cursor" not in query:
                    raise
                note(f"{exc}; going on in {_AGAIN_S:g} s")
            await asyncio.sleep(_AGAIN_S)


async def _piped(content: aiohttp.StreamReader, query: dict[str, str]) -> bool:
    """Write whole lines, and remember the cursor of the last one; whether it came to its end."""
    rest, ended = b"", False
    async for piece in content.iter_any():
        lines, found, rest = (rest + piece).rpartition(b"\n")
        if not found:
            continue
        _write(lines + found)
        last = orjson.loads(lines[lines.rfind(b"\n") + 1 :])
        query["cursor"] = last["cursor"]
        ended = last["type"] == "replay_completed" and "follow" not in query
        if last["type"] == "error":
            if not last["retriable"]:
                raise BadQuery("cursor", last["detail"])
            note(last["detail"])
    return ended
