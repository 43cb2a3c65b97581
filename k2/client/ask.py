"""What is sent to a worker: a request, and Python's values as the API's parameters."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any
from urllib.parse import quote, urlencode

import orjson

__all__ = ["ARROW", "JSON", "Ask", "Names", "Time", "get", "post"]

#: ns since the epoch, what the API takes as text (`-1h`, ISO 8601), or Python's own; naive is UTC.
Time = int | str | dt.datetime | dt.date
#: One, or several.
Names = str | Iterable[str]

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
#: Longer than a worker takes to say that it has no answer (`answer_timeout_ms`).
ANSWER_TIMEOUT_S = 75.0
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `silent_s`: for how long nothing may come of its answer."""

    method: str
    path: str
    accept: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    silent_s: float = ANSWER_TIMEOUT_S

    @property
    def target(self) -> str:
        """Path and query."""
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path

    @property
    def headers(self) -> dict[str, str]:
        # Unpacking costs more than it saves, but for a slow line.
        named = {"Accept": self.accept, "Accept-Encoding": "identity"}
        return named if self.body is None else {**named, "Content-Type": JSON}

    def but(self, **more: Any) -> Ask:
        """The same with other values of some parameters; None: without."""
        return replace(self, query={**self.query, **_texts(more)})


def get(path: str, accept: str = ARROW, *parts: str, **parameters: Any) -> Ask:
    """A GET; `parts`: what follows the path, each a name of its own."""
    return Ask("GET", "/".join([path, *(quote(part, safe="") for part in parts)]), accept,
               _texts(parameters))  # fmt: skip


def post(path: str, **fields: Any) -> Ask:
    """A POST of a JSON object. Decimals become text, as a statement's parameters want them."""
    given = {name: value for name, value in fields.items() if value is not None}
    return Ask("POST", path, ARROW, body=orjson.dumps(given, default=_exact))


def _texts(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as text; those that are None are left out."""
    return {
        name.rstrip("_"): _text(name, value)
        for name, value in parameters.items()
        if value is not None
    }


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | str):
        return str(value)
    if isinstance(value, dt.datetime):
        return str(_ns(value))
    if isinstance(value, dt.date):
        return value.isoformat()
    names = list(value)
    if wrong := [one for one in names if not isinstance(one, str) or "," in one]:
        raise ValueError(f"{name}: {wrong[0]!r} is no name, or has a comma")
    return ",".join(names)


def _ns(moment: dt.datetime) -> int:
    """ns since the epoch, exactly; pandas has moments with nanoseconds."""
    known = moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
    past = known - _EPOCH
    whole = (past.days * 86_400 + past.seconds) * 1_000_000 + past.microseconds
    return whole * 1000 + int(getattr(moment, "nanosecond", 0))


def _exact(value: Any) -> str:
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no value of JSON")
