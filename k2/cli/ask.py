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

__all__ = ["ask", "refusal", "worker"]

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
    place, headers = worker(url)
    more = f"?{urllib.parse.urlencode(query)}" if query else ""
    return run(Stop(), lambda: _get(f"{place}{path}{more}", headers))


def worker(url: str | None) -> tuple[str, dict[str, str]]:
    """A worker's URL, without a slash at its end, and the headers that have K2_API_KEY.

    Args:
        url: None: that of this machine's settings.

    Raises:
        BadQuery: it is none of http.
    """
    settings = load()
    place = url or settings.url
    if not place.startswith(("http://", "https://")):
        raise BadQuery("url", f"{place!r} is not http(s)://host[:port]")
    return place.rstrip("/"), authorization(settings.api_key)


def refusal(place: str, status: int, body: bytes, otherwise: str) -> K2Error:
    """What a worker refuses, with its reason; PeerUnavailable if it may pass by itself.

    Args:
        body: problem+json, or `otherwise` is the reason.
    """
    why = f"{place}: {_detail(body) or otherwise}"
    return PeerUnavailable(why) if status >= 500 or status == 429 else K2Error(why)


def _get(place: str, headers: dict[str, str]) -> dict[str, Any]:
    request = urllib.request.Request(place)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # for this worker, not for another place
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
            return dict(orjson.loads(answer.read()))
    except urllib.error.HTTPError as refused:
        with refused:
            raise refusal(place, refused.code, refused.read(), str(refused)) from refused
    except (OSError, http.client.HTTPException, TypeError, ValueError) as exc:
        reason = getattr(exc, "reason", exc)
        raise PeerUnavailable(f"{place}: {reason}: is a worker running there?") from exc


def _detail(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return ""
