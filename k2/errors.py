"""Every error K2 raises, as one tree.

K2Error
├── SettingError            a setting is unknown or its value impossible
├── BrokerUnavailable       no Kafka broker answers at the address
├── TopicMissing            a topic that must exist does not
├── LogTruncated            the log ends or starts beyond the stored offset
├── TopicRecreated          a topic has another id than the one that Iceberg has read
├── Fenced                  another worker has committed our partitions
├── CommitFailed            the catalog refused, and retrying did not help
├── CatalogUnavailable      the Iceberg catalog cannot be reached or loaded
├── SchemaMismatch          a batch lacks a column or has one of another type
├── UnsupportedFormat       a Kafka record batch older than format v2
├── RegistryUnavailable     the schema registry does not answer
├── BadQuery                a query parameter is missing, unknown or impossible
├── QueryTooLarge           a query needs more memory than it may have
├── BadSql                  a statement is not one SELECT over the tables, or fails; says where
├── SqlLimit                a statement met a limit of time, memory or bytes
├── SqlBusy                 all processes for SQL are busy
├── SandboxDied             the process of a statement ended by itself
├── PeerUnavailable         the worker that owns what is asked for cannot be asked now
├── NotOwner                this worker does not own the partition that it is asked for
├── Unauthorized            a request has no API key that is good
├── Forbidden               its key lacks the scope, or its host name is a stranger's
├── TooManyRequests         a key asks more often, or more runs at once, than may be
├── RequestTooLarge         a request's body has more bytes than it may
├── RequestTimeout          a request's body did not come in time
├── AnswerTimeout           an answer did not begin in time
├── FeedError               a feed's file or row cannot be used
└── ChildDied               a process of the embedded stack ended by itself
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AnswerTimeout",
    "BadQuery",
    "BadSql",
    "BrokerUnavailable",
    "CatalogUnavailable",
    "ChildDied",
    "CommitFailed",
    "FeedError",
    "Fenced",
    "Forbidden",
    "K2Error",
    "LogTruncated",
    "NotOwner",
    "PeerUnavailable",
    "QueryTooLarge",
    "RegistryUnavailable",
    "RequestTimeout",
    "RequestTooLarge",
    "SandboxDied",
    "SchemaMismatch",
    "SettingError",
    "SqlBusy",
    "SqlLimit",
    "TooManyRequests",
    "TopicMissing",
    "TopicRecreated",
    "Unauthorized",
    "UnsupportedFormat",
]


class K2Error(Exception):
    """Base of all; `retriable` says whether the same call may succeed later."""

    retriable: bool = False
    status: int = 500

    @property
    def headers(self) -> dict[str, str]:
        """What an HTTP answer says of it beside its status."""
        return {"Retry-After": "1"} if self.retriable else {}

    @property
    def members(self) -> dict[str, Any]:
        """What an HTTP problem has of it beside its detail."""
        return {}


class SettingError(K2Error):
    """Raised at start when a setting is unknown or its value impossible."""


class BrokerUnavailable(K2Error):
    """Raised when no Kafka broker answers at the configured address."""

    retriable = True
    status = 503


class TopicMissing(K2Error):
    """Raised when a topic that must exist does not."""


class LogTruncated(K2Error):
    """Raised when a partition's log ends or starts beyond the offset stored in Iceberg."""


class TopicRecreated(K2Error):
    """Raised when a topic was made anew: its id is not the one whose offsets are in Iceberg."""


class Fenced(K2Error):
    """Raised when the table's offsets or topic ids are not those that we last wrote."""


class CommitFailed(K2Error):
    """Raised when a commit was refused for another reason than fencing, after all retries."""

    retriable = True
    status = 503


class CatalogUnavailable(K2Error):
    """Raised when the Iceberg catalog cannot be reached or loaded."""

    retriable = True
    status = 503


class SchemaMismatch(K2Error):
    """Raised when a batch lacks a column or has one of another type."""


class UnsupportedFormat(K2Error):
    """Raised when a fetched record batch is older than Kafka's format v2."""


class RegistryUnavailable(K2Error):
    """Raised when the schema registry does not answer; an unknown id is a reject, not this."""

    retriable = True
    status = 503


class BadQuery(K2Error):
    """Raised when a query parameter is missing, unknown or impossible; names the parameter."""

    status = 400

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter}: {message}")
        self.parameter = parameter

    @property
    def members(self) -> dict[str, Any]:
        return {"parameter": self.parameter}


class QueryTooLarge(K2Error):
    """Raised when a query needs more memory than `query_memory_max`, spilling included."""

    status = 422


class BadSql(K2Error):
    """Raised when a statement is refused or fails; `position` has offset, line and column of it."""

    status = 400

    def __init__(self, message: str, position: dict[str, int] | None = None) -> None:
        super().__init__(message)
        self.position = position

    @property
    def members(self) -> dict[str, Any]:
        return {} if self.position is None else {"position": self.position}


class SqlLimit(K2Error):
    """Raised when a statement met a limit; names the setting and its value."""

    status = 422


class SqlBusy(K2Error):
    """Raised when no process for SQL became free in time."""

    retriable = True
    status = 503


class SandboxDied(K2Error):
    """Raised when the process of a statement ended by itself, or does not start."""


class PeerUnavailable(K2Error):
    """Raised when a partition's owner is unknown for now, or does not answer; names the worker."""

    retriable = True
    status = 503


class NotOwner(K2Error):
    """Raised when a worker is asked for a partition that it does not own: look again who does."""

    retriable = True
    status = 421


class Unauthorized(K2Error):
    """Raised when a request has no API key, or one that is unknown, revoked or expired."""

    status = 401

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Bearer realm="k2"'}


class Forbidden(K2Error):
    """Raised when a key lacks the scope, which it names; or a page of elsewhere asks."""

    status = 403


class TooManyRequests(K2Error):
    """Raised when a key asks too often, or too much is running; says when to ask again."""

    retriable = True
    status = 429

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class RequestTooLarge(K2Error):
    """Raised when a request's body has more than `body_bytes_max`."""

    status = 413


class RequestTimeout(K2Error):
    """Raised when a request's body is not there within `body_timeout_ms`."""

    status = 408


class AnswerTimeout(K2Error):
    """Raised when an answer has not begun within `answer_timeout_ms`."""

    retriable = True
    status = 503


class FeedError(K2Error):
    """Raised when a feed's file or row cannot be used."""


class ChildDied(K2Error):
    """Raised when a process of the embedded stack ended by itself."""
