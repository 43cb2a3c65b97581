"""What a running worker says, asked over HTTP."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import orjson

from k2.cli.output import run
from k2.errors import BadQuery, K2Error, PeerUnavailable
from k2.keys import authorization
from k2.query.rows import Stop
from k2.settings import load

__all__ = ["ask"]

ANSWER_TIMEOUT_S = 30.0


def ask(url: str | None, path: str, query: dict[str, str]) -> dict[str, Any]:
    """The answer of a worker; Ctrl-C is heard while it is waited for. K2_API_KEY is sent along.

    Args:
        url: of the worker; None: that of this machine's settings.
        path: its parts quoted already.

    Raises:
        BadQuery: `url` is none of http.
        K2Error: the worker says that there is no such thing, or refuses what is asked.
        PeerUnavailable: the worker cannot be reached, or cannot answer now.
    """
    settings = load()
    worker = url or settings.url
    if not worker.startswith(("http://", "https://")):
        raise BadQuery("url", f"{worker!r} is not http(s)://host[:port]")
    more = f"?{urllib.parse.urlencode(query)}" if query else ""
    place = f"{worker.rstrip('/')}{path}{more}"
    return run(Stop(), lambda: _get(place, settings.api_key))


def _get(place: str, key: str) -> dict[str, Any]:
    request = urllib.request.Request(place)
    for name, value in authorization(key).items():
        request.add_unredirected_header(name, value)  # for this worker, not for another place
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
            return dict(orjson.loads(answer.read()))
    except urllib.error.HTTPError as refused:
        with refused:
            why = f"{place}: {_detail(refused.read()) or refused}"
        raise (PeerUnavailable(why) if refused.code >= 500 else K2Error(why)) from refused
    except (OSError, http.client.HTTPException, TypeError, ValueError) as exc:
        reason = getattr(exc, "reason", exc)
        raise PeerUnavailable(f"{place}: {reason}: is a worker running there?") from exc


def _detail(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return ""
