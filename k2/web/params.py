"""Query parameters of the views: every one is known, checked, and named when it is wrong."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from k2.errors import BadQuery
from k2.query.pages import Cursor, digest
from k2.query.snapshots import AsOf
from k2.query.span import Span
from k2.query.times import bounds_ns, date, interval_ns, range_ns, time_ns

__all__ = [
    "DATE",
    "FLAG",
    "GIVEN",
    "INTERVAL",
    "NAMES",
    "RANGE",
    "TEXT",
    "TIME",
    "WHOLE",
    "Asked",
    "Parameter",
    "Parameters",
    "Written",
]

_T = TypeVar("_T")


class Asked(NamedTuple):
    """What every resource of records takes, by the names that `k2.query.engine` has for it."""

    exchange: str | None
    symbols: list[str] | None
    start_ns: int | None
    end_ns: int | None
    limit: int | None
    as_of: AsOf | None
    after: Cursor | None
    asked: str

    @property
    def span(self) -> Span:
        return Span(self.exchange, self.symbols, self.start_ns, self.end_ns)


class Parameters:
    """The parameters of one request; unknown and repeated ones are refused at once."""

    def __init__(
        self, query: Any, known: tuple[str, ...], defaults: Mapping[str, str] | None = None
    ) -> None:
        """`query`: a (multi) mapping of str to str; `known`: all that a view may read."""
        values: dict[str, str] = {}
        for name, value in query.items():
            if name not in known:
                told = ", ".join(known) or "none"
                raise BadQuery(name[:100], f"unknown parameter; known: {told}")
            if name in values:
                raise BadQuery(name, "given twice")
            values[name] = value
        self._values: Mapping[str, str] = values
        self._known, self._defaults = known, defaults or {}

    def __getitem__(self, parameter: Parameter[_T]) -> _T:
        """The value of a parameter, its default where it is not given.

        Raises:
            BadQuery: names the parameter.
        """
        return parameter.written.read(self, parameter.name)

    def text(self, name: str) -> str | None:
        if name not in self._known:
            raise LookupError(f"{name} is read, but not declared")
        value = self._values.get(name, self._defaults.get(name))
        if value is not None and not value.strip():
            raise BadQuery(name, "empty")
        return value

    def required(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise BadQuery(name, "missing")
        return value

    def names(self, name: str) -> list[str] | None:
        """`BHP,RIO` as a list."""
        value = self.text(name)
        if value is None:
            return None
        listed = [part.strip() for part in value.split(",")]
        if not all(listed):
            raise BadQuery(name, f"{value!r} has an empty name")
        return listed

    def time(self, name: str) -> int | None:
        value = self.text(name)
        return None if value is None else time_ns(name, value)

    def times(self) -> tuple[int | None, int | None]:
        """[start, end), of `range`, or of `start` and `end`."""
        start, end, within = self.text("start"), self.text("end"), self.text("range")
        if within is None:
            return bounds_ns(start, end)
        if start is not None or end is not None:
            raise BadQuery("range", "not together with start or end")
        return range_ns("range", within)

    def date(self, name: str) -> dt.date | None:
        value = self.text(name)
        return None if value is None else date(name, value)

    def as_of(self) -> AsOf | None:
        """An older snapshot; not together with `fresh`, whose rows are in none."""
        value = self.text("as_of")
        if value is None:
            return None
        if "fresh" in self._known and self.flag("fresh"):
            raise BadQuery("as_of", "not together with fresh: these rows are in no snapshot")
        return AsOf.read(value)

    def digest(self, resource: str) -> str:
        """What tells this question from others; a page of it may have another size and format."""
        free = ("cursor", "limit", "format")
        return digest(resource, {n: v for n, v in self._values.items() if n not in free})

    def cursor(self, resource: str) -> Cursor | None:
        value = self.text("cursor")
        return None if value is None else Cursor.read(value, self.digest(resource))

    def asked(self, resource: str) -> Asked:
        """What is asked of a resource of records; a cursor has the times of its first page."""
        start, end = self.times()
        after, asked = self.cursor(resource), self.digest(resource)
        if after is not None:
            start, end = after.start_ns, after.end_ns
        chosen = self.text("exchange"), self.names("symbol"), start, end
        return Asked(*chosen, self.whole("limit"), self.as_of(), after, asked)

    def interval(self, name: str) -> int:
        """ns."""
        return interval_ns(name, self.required(name))

    def flag(self, name: str) -> bool:
        """`true` or `false`; false where it is not given."""
        value = self.text(name) or "false"
        if value not in ("true", "false"):
            raise BadQuery(name, f"{value!r} is neither true nor false")
        return value == "true"

    def whole(self, name: str) -> int | None:
        value = self.text(name)
        if value is None:
            return None
        if not re.fullmatch(r"[0-9]{1,18}", value):
            raise BadQuery(name, f"{value!r} is not a whole number")
        return int(value)


class Written(NamedTuple, Generic[_T]):
    """How a value is written: what reads it, and what the document says of it."""

    read: Callable[[Parameters, str], _T]
    schema: Mapping[str, Any]  # JSON Schema; formats that begin with `k2-` are `k2.query.times`


@dataclass(frozen=True, slots=True, eq=False)
class Parameter(Generic[_T]):
    """A parameter as a route declares it: by it a request is read, and the document is made."""

    name: str
    written: Written[_T]
    says: str
    example: str | None = None
    among: tuple[str, ...] = ()  # all the values that there are
    default: str | None = None
    most: str | None = None  # the setting that bounds it
    required: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)  # of the JSON Schema


TEXT = Written(Parameters.text, {"type": "string", "pattern": r"\S"})
#: Text that is never missing, since it has a default or must be given.
GIVEN = Written(Parameters.required, TEXT.schema)
NAMES = Written(
    Parameters.names,
    {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": r"^[^,]*[^,\s][^,]*$"}},
)
TIME = Written(Parameters.time, {"type": "string", "format": "k2-time"})
RANGE = Written(Parameters.text, {"type": "string", "format": "k2-range"})
DATE = Written(Parameters.date, {"type": "string", "format": "date"})
INTERVAL = Written(
    Parameters.interval, {"type": "string", "pattern": "^[1-9][0-9]{0,8}(ms|s|m|h|d)$"}
)
FLAG = Written(Parameters.flag, {"type": "boolean"})
WHOLE = Written(Parameters.whole, {"type": "integer", "minimum": 0})
