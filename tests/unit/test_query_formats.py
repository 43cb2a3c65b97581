"""The formats, against a plain reference that goes through the rows one by one."""

import csv
import datetime as dt
import io
from decimal import Context, Decimal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2.query.formats import GROUP_ROWS_MIN, Encoder, plain
from k2.query.rows import Rows

#: What formats quote or escape, and what they should not.
TEXT = st.text(st.sampled_from("a ,;\"'\\/\0\b\f\t\n\r\x1f\x7f\x85é\u2028\ufeff\U0001f600<&"))
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
        'a "nâme': st.none() | TEXT,
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


@settings(deadline=None)
@given(BATCHES)
def test_json_and_ndjson_are_those_of_the_reference(batches: list[list[dict]]) -> None:
    rows = [{name: text_of(v) for name, v in row.items()} for batch in batches for row in batch]
    lines = [orjson.dumps(row) for row in rows]
    assert encoded("ndjson", batches) == b"".join(line + b"\n" for line in lines)
    answer = encoded("json", batches)
    assert answer.startswith(b'{"data":[' + b",".join(lines) + b"]")
    assert orjson.loads(answer)["count"] == len(rows)


@settings(deadline=None)
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


@settings(deadline=None)
@given(BATCHES)
def test_arrow_and_parquet_have_the_rows_and_what_is_known_of_them(
    batches: list[list[dict]],
) -> None:
    wanted = pa.Table.from_batches(
        [pa.RecordBatch.from_pylist(rows, SCHEMA) for rows in batches], SCHEMA
    )
    told = {b"k2.snapshot-id": b"7", b"k2.truncated": b"false"}
    stream = pa.ipc.open_stream(encoded("arrow", batches)).read_all()
    assert (stream.combine_chunks(), stream.schema.metadata) == (wanted.combine_chunks(), told)
    file = pq.ParquetFile(io.BytesIO(encoded("parquet", batches)))
    assert file.schema_arrow.equals(SCHEMA)
    assert file.read().combine_chunks() == wanted.combine_chunks()
    assert told.items() <= file.metadata.metadata.items()


@pytest.mark.parametrize("wide", [False, True])
def test_parquet_goes_out_by_row_groups(wide: bool) -> None:
    """What is kept in memory is one group, of rows or of bytes."""
    text = pa.array(["x" * (1000 if wide else 1)] * 8192)
    batch = pa.RecordBatch.from_arrays([text], ["text"])
    encoder = Encoder("parquet", Rows(batch.schema, iter(()), None))
    parts = [encoder.begin(), *(encoder.rows(batch) for _ in range(64)), encoder.end()]
    written = [at for at, part in enumerate(parts[1:-1]) if part]
    file = pq.ParquetFile(io.BytesIO(b"".join(parts)))
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert groups == ([3 * 8192] * 21 + [8192] if wide else [GROUP_ROWS_MIN] * 4)
    assert len(written) == sum(1 for rows in groups if rows > 8192)


@pytest.mark.parametrize("type_", [pa.decimal128(18, 8), pa.decimal128(38, 0)])
def test_decimals_are_plain(type_: pa.DataType) -> None:
    """No exponent, however small, and no zeros that say nothing."""
    smallest = Decimal(1).scaleb(-type_.scale)
    values = [None, Decimal(0), Decimal(100), Decimal(-100), smallest, -smallest]
    wanted = [None if value is None else text_of(value) for value in values]
    assert plain(pa.array(values, type_)).to_pylist() == wanted
