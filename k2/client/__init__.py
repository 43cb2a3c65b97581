"""A client of K2's HTTP API: every resource as Arrow, polars or pandas, and replays that resume.

`Client` blocks, `AsyncClient` is awaited; all else is one. What to ask and how to take up an answer
is in modules that do no I/O (`ask`, `arrow`, `pages`, `course`): generators that say what is to be
sent or read next. `blocking` and `waiting` do it, by urllib3 and by aiohttp.
"""

from k2.client.answers import AsyncReplay, AsyncRows, Replay, Rows
from k2.client.blocking import Client
from k2.client.errors import (
    BadRequest,
    ClientError,
    CutOff,
    Denied,
    DigestMismatch,
    NotFound,
    Refused,
    ReplayBroken,
    TooMany,
    Unavailable,
    Unreachable,
)
from k2.client.told import Completed, Coverage
from k2.client.waiting import AsyncClient

__all__ = [
    "AsyncClient",
    "AsyncReplay",
    "AsyncRows",
    "BadRequest",
    "Client",
    "ClientError",
    "Completed",
    "Coverage",
    "CutOff",
    "Denied",
    "DigestMismatch",
    "NotFound",
    "Refused",
    "Replay",
    "ReplayBroken",
    "Rows",
    "TooMany",
    "Unavailable",
    "Unreachable",
]
