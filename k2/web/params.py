"""Query parameters of the views: every one is known, checked, and named when it is wrong."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from k2.errors import BadQuery
from k2.query.pages import Cursor, digest
from k2.query.snapshots import AsOf
from k2.query.span import Span
from k2.query.times import bounds_ns, date, range_ns, time_ns

__all__ = ["Asked", "Parameters"]


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

    def __init__(self, query: Any, known: tuple[str, ...]) -> None:
        """`query`: a (multi) mapping of str to str."""
        values: dict[str, str] = {}
        for name, value in query.items():
            if name not in known:
                raise BadQuery(name, f"unknown parameter; known: {', '.join(known)}")
            if name in values:
                raise BadQuery(name, "given twice")
            values[name] = value
        self._values: Mapping[str, str] = values

    def text(self, name: str) -> str | None:
        value = self._values.get(name)
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
        if self.flag("fresh"):
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
