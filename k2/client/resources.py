"""Every resource of the API with its parameters, for both clients.

Parameters have the names and the meaning of the API (docs/guides/query.md, replay.md, sql.md); one
that is None is not sent. Times are ns since the epoch, Python's, or text as the API takes it.
"""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from k2.client.ask import ARROW, JSON, Ask, Names, Time, get, post
from k2.client.course import ATTEMPTS, Course
from k2.client.errors import ClientError, Unreachable
from k2.client.pages import Pages
from k2.errors import BadQuery
from k2.keys import authorization
from k2.settings import load

__all__ = ["CONNECT_TIMEOUT_S", "Resources", "closed", "place", "unreachable"]

R = TypeVar("R")
V = TypeVar("V")
P = TypeVar("P")

CONNECT_TIMEOUT_S = 10.0


def place(url: str | None, key: str | None) -> tuple[str, dict[str, str]]:
    """A worker's URL, without a slash at its end, and the headers that have the key.

    Args:
        url: None: that of this machine's settings.
        key: None: K2_API_KEY.

    Raises:
        BadQuery: it is none of http.
    """
    settings = load()
    base = settings.url if url is None else url
    if not base.startswith(("http://", "https://")):
        raise BadQuery("url", f"{base!r} is not http(s)://host[:port]")
    return base.rstrip("/"), authorization(settings.api_key if key is None else key)


def unreachable(base: str, exc: Exception) -> Unreachable:
    return Unreachable(f"{base}: {exc or type(exc).__name__}: is a worker running there?")


def closed(base: str) -> ClientError:
    return ClientError(f"{base}: the client was closed")


class Resources(ABC, Generic[R, V, P]):
    """R: how rows are given, V: a JSON object, P: a replay."""

    @abstractmethod
    def _rows(self, pages: Pages) -> R: ...

    @abstractmethod
    def _value(self, ask: Ask, *fine: int) -> V: ...

    @abstractmethod
    def _replay(self, course: Course) -> P: ...

    def trades(
        self,
        *,
        symbol: Names | None = None,
        exchange: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
        range: str | None = None,
        as_of: Time | None = None,
        columns: Names | None = None,
        with_: Literal["quote"] | None = None,
        fresh: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
        page_rows: int | None = None,
    ) -> R:
        """Trades by `ts_event`.

        Args:
            range: start and end in one, such as `-1h:now` or `2014-03-10:1d`.
            as_of: a snapshot's id, or a time: the table as it was.
            with_: "quote": each with the quote that prevailed.
            fresh: with what is not committed yet.
            limit: rows in all; None: all there are.
            cursor: goes on behind the rows of an answer that had it as `next`.
            page_rows: rows of one request; None: as many as the worker gives.

        Raises:
            Refused: by its class why; see `k2.client.errors`.
            Unreachable: nobody answers.
            CutOff: while they are read: the connection was lost.
        """
        ask = get(
            "/v1/trades", symbol=symbol, exchange=exchange, start=start, end=end, range=range,
            as_of=as_of, columns=columns, with_=with_, fresh=fresh or None, cursor=cursor,
        )  # fmt: skip
        return self._rows(Pages(ask, limit, page_rows))

    def quotes(
        self,
        *,
        symbol: Names | None = None,
        exchange: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
        range: str | None = None,
        as_of: Time | None = None,
        columns: Names | None = None,
        fresh: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
        page_rows: int | None = None,
    ) -> R:
        """Quotes by `ts_event`; as `trades`."""
        ask = get(
            "/v1/quotes", symbol=symbol, exchange=exchange, start=start, end=end, range=range,
            as_of=as_of, columns=columns, fresh=fresh or None, cursor=cursor,
        )  # fmt: skip
        return self._rows(Pages(ask, limit, page_rows))

    def bars(
        self,
        *,
        symbol: Names,
        interval: str | None = None,
        fill: Literal["none", "null", "previous"] | None = None,
        conditions: Names | None = None,
        exchange: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
        range: str | None = None,
        as_of: Time | None = None,
        columns: Names | None = None,
        fresh: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
        page_rows: int | None = None,
    ) -> R:
        """Bars of an interval such as `1s`, `5m`, `1h` or `1d`; the rest as `trades`.

        Args:
            fill: what an interval without a trade has; None: it is left out.
            conditions: which trades count, such as `-off-market`; None: all.
        """
        ask = get(
            "/v1/bars", symbol=symbol, exchange=exchange, start=start, end=end, range=range,
            as_of=as_of, columns=columns, fresh=fresh or None, cursor=cursor, interval=interval,
            fill=fill, conditions=conditions,
        )  # fmt: skip
        return self._rows(Pages(ask, limit, page_rows))

    def gaps(
        self,
        *,
        symbol: Names | None = None,
        exchange: str | None = None,
        session: dt.date | str | None = None,
        kind: Names | None = None,
        status: Names | None = None,
        severity: Names | None = None,
        start: Time | None = None,
        end: Time | None = None,
        range: str | None = None,
        as_of: Time | None = None,
        limit: int | None = None,
    ) -> R:
        """Findings of the gap ledger by `seen_at`, as they now stand; a limit keeps the newest."""
        ask = get(
            "/v1/gaps", symbol=symbol, exchange=exchange, session=session, kind=kind,
            status=status, severity=severity, start=start, end=end, range=range, as_of=as_of,
        )  # fmt: skip
        return self._rows(Pages(ask, limit))

    def symbols(
        self,
        *,
        symbol: Names | None = None,
        exchange: str | None = None,
        start: Time | None = None,
        end: Time | None = None,
        range: str | None = None,
        as_of: Time | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        page_rows: int | None = None,
    ) -> R:
        """Symbols that have trades, and what there is of each."""
        ask = get(
            "/v1/symbols", symbol=symbol, exchange=exchange, start=start, end=end, range=range,
            as_of=as_of, cursor=cursor,
        )  # fmt: skip
        return self._rows(Pages(ask, limit, page_rows))

    def symbol(self, exchange: str, symbol: str, *, bars: bool = False) -> V:
        """What is known now of one symbol: last trade and quote, session, sequences.

        Args:
            bars: and the one-minute bars of its running session.
        """
        return self._value(get("/v1/symbols", JSON, exchange, symbol, bars=bars or None))

    def instruments(
        self,
        *,
        symbol: Names | None = None,
        exchange: str | None = None,
        limit: int | None = None,
    ) -> R:
        """Reference data, the newest."""
        return self._rows(Pages(get("/v1/instruments", exchange=exchange, symbol=symbol), limit))

    def instrument(self, exchange: str, symbol: str) -> V:
        """Reference data of one symbol."""
        return self._value(get("/v1/instruments", JSON, exchange, symbol))

    def snapshots(
        self,
        *,
        table: Names | None = None,
        start: Time | None = None,
        end: Time | None = None,
        range: str | None = None,
        limit: int | None = None,
    ) -> R:
        """Snapshots that the tables still have; a limit keeps the newest."""
        return self._rows(
            Pages(get("/v1/snapshots", table=table, start=start, end=end, range=range), limit)
        )

    def sql(self, statement: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> R:
        """One SELECT over trades, quotes, bars, gaps and snapshots; wants the scope `sql`.

        Args:
            parameters: a sequence for `?` and `$1`, a mapping for `$name`; bound, never text of
                the statement.

        Raises:
            BadRequest: it is none, or fails; `position` says where.
        """
        ask = post("/v1/sql", sql=statement, parameters=parameters)
        return self._rows(Pages(ask))

    def replay(
        self,
        *,
        symbol: Names | None = None,
        exchange: str | None = None,
        kind: Names | None = None,
        start: Time | None = None,
        end: Time | None = None,
        speed: float | None = None,
        follow: bool = False,
        cursor: str | None = None,
        verify: bool = True,
        attempts: int = ATTEMPTS,
    ) -> P:
        """Trades, quotes and gaps by one clock; it goes on by itself where a connection is lost.

        Nothing is sent before it is iterated.

        Args:
            speed: times as fast as time; None, 0: as fast as it goes.
            follow: go on behind the history with what is live, without end.
            cursor: goes on behind the record that has it.
            verify: compare the history with the worker's digest at its end.
            attempts: to go on, one after the other without anything that comes.

        Raises:
            Refused, Unreachable: it could not begin.
            ReplayBroken: it could not go on; has the cursor.
            DigestMismatch: what came is not what was sent.
        """
        ask = get(
            "/v1/replay", ARROW, symbol=symbol, exchange=exchange, kind=kind, start=start, end=end,
            speed=speed, follow=follow or None, cursor=cursor,
        )  # fmt: skip
        return self._replay(Course(ask, follow, verify, attempts))

    def silence(self, *, exchange: str | None = None) -> V:
        """Who has been silent for too long in the partitions of the worker that is asked."""
        return self._value(get("/v1/silence", JSON, exchange=exchange))

    def status(self) -> V:
        """The tables: rows, snapshots, next offsets."""
        return self._value(get("/v1/status", JSON))

    def ready(self) -> V:
        """Whether the worker is ready, and why not."""
        return self._value(get("/ready", JSON), 503)
