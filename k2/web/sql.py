"""POST /v1/sql: one SELECT over the tables, in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from k2.errors import BadQuery, BadSql, CatalogUnavailable, SandboxDied, SqlBusy, SqlLimit
from k2.sandbox.pool import Pool
from k2.web.answers import form_of, stream
from k2.web.choice import FORMAT
from k2.web.params import TEXT, Parameter, Parameters, Written
from k2.web.routes import Route, in_rows
from k2.web.shapes import PINNED

__all__ = ["closing", "routes"]

SQL = Parameter(
    "sql", TEXT, "One SELECT over the tables.", "SELECT count(*) FROM trades", required=True
)
VALUES = Parameter(
    "parameters",
    Written(Parameters.text, {"type": ["array", "object"]}),
    "For `?` and `$1` a list, for `$name` an object of them by name.",
)
FIELDS = (SQL, VALUES, FORMAT)
_KNOWN = tuple(field.name for field in FIELDS)
_RAISES = (BadQuery, BadSql, SqlLimit, SqlBusy, SandboxDied, CatalogUnavailable, 406, 415)


def routes(pool: Pool) -> list[Route]:
    """The view over `pool`."""

    async def sql(request: web.Request, _: Parameters) -> web.StreamResponse:
        asked = await _asked(request)
        form = form_of(request, Parameters(_format(asked), ("format",)))
        statement, parameters = _statement(asked), _parameters(asked)
        turn = await pool.turn()
        try:
            return await stream(
                request,
                form,
                lambda stop: pool.run(statement, parameters, form, stop, turn),
            )
        finally:
            turn.release()

    row = {"type": "object", "description": "The columns of the statement."}
    return [
        Route(
            "POST", "/v1/sql", sql, "Ask", "SQL", in_rows(row, PINNED, ("X-K2-Snapshots",)),
            "One SELECT over `trades`, `quotes`, `bars`, `gaps` and `snapshots`, in DuckDB's SQL.",
            body=FIELDS, raises=_RAISES,
        )
    ]  # fmt: skip


def closing(pool: Pool) -> Callable[[web.Application], Awaitable[None]]:
    """For the end of the server: it ends the processes."""

    async def close(_: web.Application) -> None:
        await asyncio.to_thread(pool.close)

    return close


async def _asked(request: web.Request) -> dict[str, Any]:
    """The body, whose size and time `k2.web.slow` limits.

    Raises:
        BadQuery: it is no JSON object, or one with other fields.
        web.HTTPException: it is of another type.
    """
    # A page of another site may send text unasked, but not this.
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(reason="application/json is wanted")
    try:
        asked = orjson.loads(await request.read())
    except orjson.JSONDecodeError as exc:
        raise BadQuery("body", f"no JSON: {exc}") from exc
    if not isinstance(asked, dict):
        raise BadQuery("body", "not a JSON object")
    if unknown := [name for name in asked if name not in _KNOWN]:
        raise BadQuery(str(unknown[0])[:100], f"unknown; known: {', '.join(_KNOWN)}")
    return asked


def _statement(asked: dict[str, Any]) -> str:
    sql = asked.get("sql")
    if not isinstance(sql, str) or not sql.strip():
        raise BadQuery("sql", "a statement is wanted, as text")
    return sql


def _parameters(asked: dict[str, Any]) -> list[Any] | dict[str, Any]:
    parameters = asked.get("parameters")
    if parameters is None:
        return []
    if not isinstance(parameters, list | dict):
        raise BadQuery("parameters", "neither a list of values nor an object of them by name")
    return parameters


def _format(asked: dict[str, Any]) -> dict[str, str]:
    form = asked.get("format")
    if form is None:
        return {}
    if not isinstance(form, str):
        raise BadQuery("format", "not text")
    return {"format": form}
