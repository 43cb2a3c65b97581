"""What schemathesis asks a worker, beyond what the document says: it loads this module itself.

Random names find nothing, so of the names some are of records that there are (`K2_TEST_SYMBOLS`).
What has no end is left to tests of its own. Beside schemathesis's checks there is one that reads
the formats which it does not.
"""

from __future__ import annotations

import functools
import io
import os
import zlib
from typing import Any

import jsonschema_rs
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import schemathesis
from hypothesis import strategies as st

from k2.web.formats import MEDIA_TYPES

DAY_NS = 1710151200_000_000_000  # 10:00 of the day that `Simulation` makes
SYMBOLS = os.environ.get("K2_TEST_SYMBOLS", "").split(",")
STATEMENTS = [
    "SELECT * FROM trades ORDER BY ts_event LIMIT 10",
    "SELECT symbol, count(*) AS n, avg(price) FROM trades GROUP BY ALL",
    "SELECT * FROM bars LIMIT 3",
    "SELECT * FROM gaps",
    "SELECT * FROM snapshots",
    "SELECT CAST(NULL AS INTEGER) AS a, 'x' AS a, [1, 2] AS l, {'k': 1} AS s, 'inf'::DOUBLE AS d",
    "SELECT ? + 1",
    "SELECT 1/0 AS",
    "SELECT range(1000000000)",
]

moments = st.one_of(
    st.integers(DAY_NS - 3 * 10**12, DAY_NS + 30 * 10**12).map(str),
    st.integers(-(2**64), 2**64).map(str),
    st.datetimes().map(lambda moment: moment.isoformat()),
    st.sampled_from(["now", "-1h", "-1h30m", "2024-03-11", "2024-03-11T10:00:00.000000001+11:00"]),
)
schemathesis.openapi.format("k2-time", moments)
schemathesis.openapi.format(
    "k2-range",
    st.one_of(
        st.sampled_from(["2024-03-11:1d", "-1h:now", ":", "2024-03-11:", "@2024-03-11T10:00:5m"]),
        st.tuples(moments, moments).map(":".join),
    ),
)


@schemathesis.hook
def before_load_schema(context: Any, document: dict[str, Any]) -> None:
    """Have real names drawn beside random ones."""
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                schema, name = parameter["schema"], parameter["name"]
                if name == "exchange":
                    parameter["schema"] = _also(schema, ["SIM"])
                elif name == "symbol" and schema["type"] == "array":
                    schema["items"] = _also(schema["items"], SYMBOLS)
                elif name == "symbol":
                    parameter["schema"] = _also(schema, SYMBOLS)
                elif name == "columns":
                    schema["items"] = _also(schema["items"], _columns(operation, document))
                parameter.pop("example", None)
            for content in operation.get("requestBody", {}).get("content", {}).values():
                members = content["schema"]["properties"]
                members["sql"] = _also(members["sql"], STATEMENTS)


def _also(schema: dict[str, Any], values: list[str]) -> dict[str, Any]:
    """Text as before, or one of these."""
    return {"type": "string", "anyOf": [{"enum": values}, schema]}


def _columns(operation: dict[str, Any], document: dict[str, Any]) -> list[str]:
    answer = operation["responses"]["200"]["content"][MEDIA_TYPES["ndjson"]]
    name = answer["schema"]["$ref"].rpartition("/")[2]
    return list(document["components"]["schemas"][name]["properties"])


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """Of four questions that should be good, have three without what is seldom good."""
    query = case.query
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if positive and isinstance(query, dict) and zlib.crc32(repr(query).encode()) % 4:
        for name in ("cursor", "as_of", "end", "range" if "start" in query else ""):
            query.pop(name, None)
        case.headers.pop("Last-Event-ID", None)
    return case


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Leave out what has no end, and what takes as long as a day of trading."""
    query = case.query if isinstance(case.query, dict) else {}
    if case.operation.path != "/v1/replay":
        return True
    try:
        quick = not 0 < float(query.get("speed") or 0) < 1e5
    except (TypeError, ValueError):
        quick = True
    return quick and str(query.get("follow")).lower() != "true"


@functools.lru_cache
def _rows(path: str, method: str, document: bytes) -> tuple[Any, set[str] | None]:
    """What a line of NDJSON must be, and the columns that there are."""
    whole = orjson.loads(document)
    answer = whole["paths"][path][method]["responses"]["200"]["content"]
    schema = answer[MEDIA_TYPES["ndjson"]]["schema"]
    named = whole["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2])
    rooted = {**schema, "components": whole["components"]}
    columns = None if named is None else set(named["properties"])
    return jsonschema_rs.Draft202012Validator(rooted), columns


@functools.lru_cache
def _document(url: str) -> bytes:
    import requests

    return requests.get(f"{url}/openapi.json", timeout=30).content


@schemathesis.check
def rows_are_as_documented(context: Any, response: Any, case: Any) -> None:
    """Rows in NDJSON, CSV, Arrow and Parquet; and a request id on whatever it is."""
    assert response.headers.get("x-request-id"), "no X-Request-Id"
    media = response.headers.get("content-type", [""])[0].partition(";")[0]
    form = next((name for name, each in MEDIA_TYPES.items() if each == media), "json")
    if response.status_code != 200 or form == "json" or case.method.upper() == "HEAD":
        return
    line, columns = _rows(case.operation.path, case.method.lower(), _document(os.environ["K2_URL"]))
    if form == "ndjson":
        for text in response.content.splitlines():
            line.validate(orjson.loads(text))
        return
    if case.operation.path == "/v1/replay":
        pa.ipc.open_stream(response.content).read_all()
        return
    if form == "csv":
        names = response.content.decode().partition("\n")[0].split(",")
    elif form == "arrow":
        names = pa.ipc.open_stream(response.content).read_all().schema.names
    else:
        names = pq.read_table(io.BytesIO(response.content)).schema.names
    assert columns is None or set(names) <= columns, f"undocumented: {set(names) - columns}"
