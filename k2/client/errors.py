"""What a client raises, as one tree below K2Error.

ClientError
├── Unreachable             nobody answers at the address
├── CutOff                  an answer ended before its end
├── ReplayBroken            a replay could not go on; has the cursor to go on from
├── DigestMismatch          the records of a replay are not those that the worker sent
└── Refused                 the worker answered with a problem: status, title, detail, request id
    ├── BadRequest          400, 413, 415, 422: what is asked for is impossible, or too much
    ├── Denied              401, 403: no key, or one that may not do this
    ├── NotFound            404
    ├── TooMany             429; `retry_after_s` says when to ask again
    └── Unavailable         502, 503, 504: it cannot answer now
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from k2.errors import K2Error

__all__ = [
    "BadRequest",
    "ClientError",
    "CutOff",
    "Denied",
    "DigestMismatch",
    "NotFound",
    "Refused",
    "ReplayBroken",
    "TooMany",
    "Unavailable",
    "Unreachable",
    "refusal",
]


class ClientError(K2Error):
    """Base of all; `retriable` says whether the same call may succeed later."""


class Unreachable(ClientError):
    """Raised when there is no connection, or it ends before an answer has begun."""

    retriable = True


class CutOff(ClientError):
    """Raised when an answer ends before its end: what came of it is not all."""

    retriable = True


class ReplayBroken(ClientError):
    """Raised when a replay ends before its end, and going on did not help, or would not."""

    def __init__(self, message: str, cursor: str | None, retriable: bool) -> None:
        """`cursor`: behind the last record that was given; None: there was none."""
        super().__init__(message)
        self.cursor, self.retriable = cursor, retriable


class DigestMismatch(ClientError):
    """Raised behind a replay whose records have another digest or number than the worker says."""


class Refused(ClientError):
    """Raised when a worker answers with a problem (RFC 9457).

    status, title, detail: as it says. kind: the end of its type, such as `bad-query`.
    request_id: by which the worker's log has it. retry_after_s: None: not said.
    more: all other members, such as `parameter`, or `position` of SQL.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        kind: str = "",
        request_id: str | None = None,
        retry_after_s: float | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{status} {title}: {detail}" if detail else f"{status} {title}")
        self.status, self.title, self.detail, self.kind = status, title, detail, kind
        self.request_id, self.retry_after_s = request_id, retry_after_s
        self.more: Mapping[str, Any] = more or {}


class BadRequest(Refused):
    """Raised when what is asked for is impossible, or more than may be asked for."""

    @property
    def parameter(self) -> str | None:
        """The parameter that is wrong."""
        return self.more.get("parameter")

    @property
    def position(self) -> Mapping[str, int] | None:
        """Where a statement is wrong: `offset` from 0, `line` and `column` from 1."""
        return self.more.get("position")


class Denied(Refused):
    """Raised when a key is wanted, or the key may not do this."""


class NotFound(Refused):
    """Raised when there is no such thing."""


class TooMany(Refused):
    """Raised when the key asks too often, or too much is running."""

    retriable = True


class Unavailable(Refused):
    """Raised when the worker, or what it asks, cannot answer now."""

    retriable = True


_BY_STATUS: dict[int, type[Refused]] = {
    **dict.fromkeys((400, 413, 415, 422), BadRequest),
    **dict.fromkeys((401, 403), Denied),
    404: NotFound,
    429: TooMany,
    **dict.fromkeys((502, 503, 504), Unavailable),
}
_TYPE = "urn:k2:error:"
#: What has a place of its own.
_OWN = ("type", "title", "status", "detail")


def refusal(status: int, reason: str, headers: Mapping[str, str], body: bytes) -> Refused:
    """What an answer of another status says.

    Args:
        reason: of the status line, where the body is no problem: a proxy's own, say.
        headers: by their names in small letters.
    """
    try:
        problem = orjson.loads(body)
    except orjson.JSONDecodeError:
        problem = None
    told = problem if isinstance(problem, dict) else {}
    wait = headers.get("retry-after", "")
    return _BY_STATUS.get(status, Refused)(
        status,
        str(told.get("title", reason)),
        str(told.get("detail", "")),
        str(told.get("type", "")).removeprefix(_TYPE),
        headers.get("x-request-id"),
        float(wait) if wait.isdecimal() else None,
        {name: value for name, value in told.items() if name not in _OWN},
    )
