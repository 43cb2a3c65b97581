"""What a statement is, before it runs: one SELECT over K2's tables, with functions that compute.

DuckDB parses it; the tree that it gives is looked through, and nothing of it is executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import orjson

__all__ = ["TABLES", "Refused", "examine", "place", "system_views"]

#: Tables that a statement may name.
TABLES = ("trades", "quotes", "bars", "gaps", "snapshots")
#: Functions of a FROM clause that read nothing; all others read files, settings or text as SQL.
TABLE_FUNCTIONS = frozenset(
    ("range", "generate_series", "unnest", "repeat", "repeat_row", "json_each", "json_tree",
     "pg_timezone_names")
)  # fmt: skip
#: Scalar functions that tell of the process, not of the rows, or that write.
REFUSED_FUNCTIONS = frozenset(("current_setting", "write_log", "getvariable", "nextval", "setval"))
_DATABASES = ("memory", "temp")
_SHOWN = ("DESCRIBE", "SUMMARY")


class Refused(Exception):
    """A statement is not one that runs here; `at` is a byte of its text."""

    def __init__(self, message: str, at: int | None = None) -> None:
        super().__init__(message)
        self.at = at


def examine(connection: duckdb.DuckDBPyConnection, sql: str, system: frozenset[str]) -> list[str]:
    """Return the tables that a statement names, in the order of `TABLES`.

    Args:
        system: as from `system_views`.

    Raises:
        Refused: it is not one SELECT, or names what is no table or may not be called.
        duckdb.Error: it cannot be parsed.
    """
    found = connection.extract_statements(sql)
    if len(found) != 1:
        raise Refused(f"one SELECT is wanted; these are {len(found)} statements")
    if found[0].type != duckdb.StatementType.SELECT:
        raise Refused(f"only a SELECT runs here, not {found[0].type.name}")
    ((text,),) = connection.execute(
        "SELECT json_serialize_sql(?, skip_default := true)", [sql]
    ).fetchall()
    try:
        tree = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise Refused("the expressions are nested too deeply") from exc
    if tree.get("error"):
        raise Refused(tree.get("error_message", "it cannot be read"), _whole(tree.get("position")))
    nodes = list(_nodes(tree))
    own = _defined(nodes) - system
    named = {name for node in nodes if (name := _check(node, own)) is not None}
    return [name for name in TABLES if name in named]


def place(sql: str, at: int) -> dict[str, int]:
    """Where a byte of the text is: `offset` from 0 in characters, `line` and `column` from 1."""
    before = sql.encode()[:at].decode(errors="ignore")
    line = before.count("\n") + 1
    return {"offset": len(before), "line": line, "column": len(before) - before.rfind("\n")}


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON value, without recursion: it is as deep as its author likes."""
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _defined(nodes: list[dict[str, Any]]) -> set[str]:
    """Names that WITH gives."""
    maps = (node["cte_map"].get("map", ()) for node in nodes if "cte_map" in node)
    return {entry["key"].lower() for entries in maps for entry in entries}


def system_views(connection: duckdb.DuckDBPyConnection) -> frozenset[str]:
    """DuckDB's own views: a name that WITH gives in one place may mean one of them in another."""
    rows = connection.execute("SELECT view_name FROM duckdb_views() WHERE internal").fetchall()
    return frozenset(name.lower() for (name,) in rows)


def _check(node: dict[str, Any], own: set[str]) -> str | None:
    """Return the table that a node names, if it does.

    Raises:
        Refused: it names something else, or calls what may not be called.
    """
    at = _whole(node.get("query_location"))
    kind = node.get("type")
    if kind == "BASE_TABLE":
        path = [part.lower() for part in node.get("qualified_name", {}).get("path", ())]
        if len(path) == 1 and path[0] in own:
            return path[0] if path[0] in TABLES else None
        database, schema = ([""] * 3 + path)[-3:-1]
        where = database in ("", *_DATABASES) and schema in ("", "main")
        if not (where and path and path[-1] in TABLES and len(path) <= 3):
            raise Refused(f"no table {'.'.join(path)!r}: there are {', '.join(TABLES)}", at)
        return str(path[-1])
    if kind == "TABLE_FUNCTION":
        name = str(node.get("function", {}).get("function_name", "")).lower()
        if name not in TABLE_FUNCTIONS:
            listed = ", ".join(sorted(TABLE_FUNCTIONS))
            raise Refused(f"{name}: not a function of a FROM clause here; these are: {listed}", at)
    elif kind == "SHOW_REF":
        if node.get("show_type") not in _SHOWN or "query" not in node:
            raise Refused("only DESCRIBE and SUMMARIZE of a table or of a SELECT", at)
    elif node.get("class") == "FUNCTION":
        name = str(node.get("function_name", "")).lower()
        if name in REFUSED_FUNCTIONS:
            raise Refused(f"{name}: not to be called here", at)
    return None


def _whole(value: Any) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return None
