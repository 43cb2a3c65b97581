"""The formats, against a plain reference that goes through the rows one by one."""

import csv
import datetime as dt
import io
from decimal import Context, Decimal

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2.query.formats import Encoder, plain
from k2.query.rows import Rows

INT64 = st.integers(-(2**63), 2**63 - 1)
EXACT = Context(prec=60)
INTERVAL = pa.struct([("first", pa.int64()), ("last", pa.int64())])

SCHEMA = pa.schema(
    [
        pa.field("ts", pa.int64(), nullable=False),
        pa.field("price", pa.decimal128(18, 8)),
        pa.field("volume", pa.decimal128(38, 8)),
        pa.field("whole", pa.decimal128(38, 0)),
        pa.field("day", pa.date32()),
        pa.field('a "nâme', pa.string()),
        pa.field("flag", pa.bool_()),
        pa.field("remaining", pa.list_(INTERVAL)),
    ]
)


def digits(precision: int, scale: int) -> st.SearchStrategy[Decimal]:
    most = 10**precision - 1
    return st.integers(-most, most).map(lambda n: Decimal(n).scaleb(-scale, EXACT))


INTERVALS = st.tuples(INT64, INT64).map(lambda pair: {"first": pair[0], "last": pair[1]})
ROW = st.fixed_dictionaries(
    {
        "ts": INT64,
        "price": st.none() | digits(18, 8),
        "volume": st.none() | digits(38, 8),
        "whole": st.none() | digits(38, 0),
        "day": st.none() | st.dates(dt.date(1900, 1, 1), dt.date(2200, 1, 1)),
        'a "nâme': st.none() | st.text(),
        "flag": st.none() | st.booleans(),
        "remaining": st.none()
        | st.lists(
            st.tuples(INT64, INT64).map(lambda p: {"first": p[0], "last": p[1]}), max_size=3
        ),
    }
).map(lambda row: {name: row[name] for name in SCHEMA.names})
BATCHES = st.lists(st.lists(ROW, min_size=1, max_size=5), max_size=3)


def text_of(value: object) -> object:
    if not isinstance(value, Decimal):
        return value
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def encoded(form: str, batches: list[list[dict]]) -> bytes:
    encoder = Encoder(form, Rows(SCHEMA, iter(()), 7))
    parts = [encoder.begin()]
    parts += [encoder.rows(pa.RecordBatch.from_pylist(rows, SCHEMA)) for rows in batches]
    return b"".join([*parts, encoder.end()])


@given(BATCHES)
def test_json_and_ndjson_are_those_of_the_reference(batches: list[list[dict]]) -> None:
    rows = [{name: text_of(v) for name, v in row.items()} for batch in batches for row in batch]
    lines = [orjson.dumps(row) for row in rows]
    assert encoded("ndjson", batches) == b"".join(line + b"\n" for line in lines)
    answer = encoded("json", batches)
    assert answer.startswith(b'{"data":[' + b",".join(lines) + b"]")
    assert orjson.loads(answer)["count"] == len(rows)


@given(BATCHES)
def test_csv_reads_back(batches: list[list[dict]]) -> None:
    """Null and the empty string differ in nothing but quotes, which Python's reader drops."""
    text = encoded("csv", batches).decode()
    header, *found = csv.reader(io.StringIO(text, newline=""))
    assert header == SCHEMA.names
    wanted = []
    for row in (row for batch in batches for row in batch):
        cells = [
            orjson.dumps(value).decode()
            if name == "remaining"
            else str(value).lower()
            if name == "flag" and value is not None
            else ""
            if value is None
            else str(text_of(value))
            for name, value in row.items()
        ]
        wanted.append(cells)
    assert found == wanted


@pytest.mark.parametrize("type_", [pa.decimal128(18, 8), pa.decimal128(38, 0)])
def test_decimals_are_plain(type_: pa.DataType) -> None:
    """No exponent, however small, and no zeros that say nothing."""
    smallest = Decimal(1).scaleb(-type_.scale)
    values = [None, Decimal(0), Decimal(100), Decimal(-100), smallest, -smallest]
    wanted = [None if value is None else text_of(value) for value in values]
    assert plain(pa.array(values, type_)).to_pylist() == wanted
