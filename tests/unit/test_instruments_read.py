"""Instruments: schema, bytes and back, files, and what the table makes of any records."""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib
import io
import itertools
import logging
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastavro
import orjson
import pyarrow as pa
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from k2.cli import cli
from k2.cli.feeds import load
from k2.codec import InstrumentReader, encode_instruments
from k2.codec.instruments import key_of, table_of
from k2.errors import FeedError, RegistryUnavailable
from k2.feeds.instruments import read_instruments
from k2.query.formats import Encoder
from k2.query.rows import Rows
from k2.registry import FileRegistry, HttpRegistry
from k2.schemas import INSTRUMENT_AVRO, INSTRUMENTS
from k2.web.answers import middlewares
from k2.web.instruments import Own, routes
from tests.integration.parts import environment

ROW = {
    "exchange": "ASX", "symbol": "BHP", "name": "BHP", "isin": "AU000000BHP4",
    "company_id": "7078", "tick_size": Decimal("0.01000000"), "lot_size": Decimal("1.00000000"),
    "listed": dt.date(1885, 8, 13), "delisted": None,
}  # fmt: skip
PLACE = TP("market.instruments", 0)


class Schemas(dict[int, Any]):
    """Writer schemas by their id, as a registry has them."""


def values(rows: list[dict[str, Any]], schema_id: int = 1) -> list[bytes]:
    buffer, offsets = encode_instruments(pa.Table.from_pylist(rows, INSTRUMENTS), schema_id)
    ends = offsets.tolist()
    return [bytes(buffer[a:b]) for a, b in itertools.pairwise(ends)]


def written(schema: dict[str, Any], row: dict[str, Any]) -> bytes:
    out = io.BytesIO(b"\0\0\0\0\1")
    out.seek(5)
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), row)
    return out.getvalue()


def changed(name: str, avro: Any) -> dict[str, Any]:
    """The schema of a writer whose field is of another type."""
    fields = [f | {"type": avro, "default": None} if f["name"] == name else f
              for f in INSTRUMENT_AVRO["fields"]]  # fmt: skip
    return INSTRUMENT_AVRO | {"fields": fields}


def test_schema_has_the_fields_of_the_design() -> None:
    """All but exchange and symbol may be unknown; decimals and dates are exact."""
    nullable = {field.name: field.type for field in INSTRUMENTS if field.nullable}
    assert INSTRUMENTS.names[:2] == ["exchange", "symbol"]
    assert nullable == {
        "name": pa.string(), "isin": pa.string(), "company_id": pa.string(),
        "tick_size": pa.decimal128(18, 8), "lot_size": pa.decimal128(18, 8),
        "listed": pa.date32(), "delisted": pa.date32(),
    }  # fmt: skip


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
_SIZE = st.none() | st.decimals(0, 10**9, places=8, allow_nan=False)
_DAY = st.none() | st.dates()


@given(
    st.builds(
        lambda **row: row,
        **{"exchange": _TEXT, "symbol": _TEXT, "name": st.none() | _TEXT, "isin": st.none() | _TEXT,
           "company_id": st.none() | _TEXT, "tick_size": _SIZE, "lot_size": _SIZE,
           "listed": _DAY, "delisted": _DAY},
    )
)  # fmt: skip
def test_what_is_encoded_is_read_back(row: dict[str, Any]) -> None:
    (value,) = values([row])
    key = key_of(row["exchange"], row["symbol"])
    assert InstrumentReader(Schemas({1: INSTRUMENT_AVRO})).read(key, value) == row
    assert value == written(INSTRUMENT_AVRO, row)


GOOD = values([ROW])[0]
LONG = changed("tick_size", ["null", {"type": "bytes", "logicalType": "decimal",
                                      "precision": 30, "scale": 9}])  # fmt: skip
BAD = {
    "no frame": (b"ASX.BHP", b"{}", "no frame"),
    "empty": (b"ASX.BHP", b"", "0 bytes"),
    "cut": (b"ASX.BHP", GOOD[:-1], "EOFError"),
    "more": (b"ASX.BHP", GOOD + b"x", "1 bytes behind the value"),
    "another key": (b"ASX.RIO", GOOD, "it is ASX.BHP, not what its key says"),
    "unknown id": (b"ASX.BHP", b"\0\0\0\0\x09" + GOOD[5:], "schema id 9 is not registered"),
    "no schema": (b"ASX.BHP", b"\0\0\0\0\2" + GOOD[5:], "schema id 2"),
    "no instrument": (b"ASX.BHP", b"\0\0\0\0\3\0", "Schema"),
    "a digit more": (b"ASX.BHP", b"\0\0\0\0\4" + written(LONG, ROW | {
        "tick_size": Decimal("0.000000001")})[5:], "tick_size: .*is no decimal128"),
}  # fmt: skip


def schemas() -> Schemas:
    other = {"type": "record", "name": "Other", "fields": [{"name": "x", "type": "long"}]}
    return Schemas({1: INSTRUMENT_AVRO, 2: {"type": "nonsense"}, 3: other, 4: LONG})


@pytest.mark.parametrize("name", BAD)
def test_a_value_that_is_no_instrument_says_why(name: str) -> None:
    key, value, why = BAD[name]
    with pytest.raises(ValueError, match=why):
        InstrumentReader(schemas()).read(key, value)


def test_an_older_writer_is_read_with_null_for_what_it_did_not_know() -> None:
    old = INSTRUMENT_AVRO | {"fields": INSTRUMENT_AVRO["fields"][:3]}
    row = InstrumentReader(Schemas({1: old})).read(b"ASX.BHP", written(old, ROW))
    assert row == dict.fromkeys(INSTRUMENTS.names) | {
        k: ROW[k] for k in ("exchange", "symbol", "name")
    }


# -- files


def test_asx_reference_data_is_told_by_its_header(tmp_path: Path) -> None:
    """The dates bound what the row covers: they say nothing of a listing."""
    path = tmp_path / "info.csv"
    path.write_text(
        "company_id,symbol,company_name,ISIN,start_date,end_date\r\n"
        '1,XYZ,"X, Y ""Z""",AU000000XYZ1,11/06/2003,03/31/2014\r\n'
    )
    table, bad = read_instruments(path, "ASX")
    assert bad == []
    assert table.schema == INSTRUMENTS
    assert table.to_pylist() == [dict.fromkeys(INSTRUMENTS.names) | {
        "exchange": "ASX", "symbol": "XYZ", "name": 'X, Y "Z"', "isin": "AU000000XYZ1",
        "company_id": "1"}]  # fmt: skip


def test_bad_rows_are_named_by_line_and_column_and_the_rest_loads(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    lines = {
        'lot_size,symbol,exchange,tick_size,listed,delisted,isin,name': None,
        '1,A,X,0.5,2014-03-10,,,"two\nlines"': None,
        '0,B,X,,,,,': "lot_size '0' is not a decimal above 0 with at most 10 digits before and 8",
        '1,C,X,1e-2,,,,': "tick_size '1e-2' is not a decimal",
        '1,D,X,0.000000001,,,,': "tick_size '0.000000001' is not",
        '1,E,X,,10/03/2014,,,': "listed '10/03/2014' is not a date like 2014-03-10",
        '1,F,X,,2014-02-30,,,': "listed '2014-02-30' does not exist",
        '1,G,X,,2014-03-10,2014-03-09,,': "delisted '2014-03-09' is before listed '2014-03-10'",
        '1,H,X.Y,,,,,': "exchange 'X.Y' has a point",
        '1,I,X,,,,AU12,': "isin 'AU12' is not an ISIN",
        '1,,X,,,,,': "symbol is empty",
        '1,A,X,,,,,': "symbol 'A' again, after line 3",
        '1,J': "2 fields, not 8",
        '': "empty line",
        ' 1234567890.12345678 , A ,,,,,,': None,
    }  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    table, bad = read_instruments(path, "ASX")
    wanted = [(number, why) for number, why in enumerate(lines.values(), 1) if why]
    assert [row.line - 1 for row in bad] == [number for number, _ in wanted]  # one has two lines
    for row, (_, why) in zip(bad, wanted, strict=True):
        assert row.reason.startswith(why)
    first, second = table.to_pylist()
    assert (first["name"], first["tick_size"], first["exchange"]) == (
        "two\nlines",
        Decimal("0.5"),
        "X",
    )
    assert (second["symbol"], second["exchange"]) == ("A", "ASX")
    assert second["lot_size"] == Decimal("1234567890.12345678")


def test_what_is_written_as_csv_can_be_loaded(tmp_path: Path) -> None:
    rows = [ROW, dict.fromkeys(INSTRUMENTS.names) | {"exchange": "X", "symbol": "A,B", "name": '"'}]
    table = table_of(rows)
    encoder = Encoder("csv", Rows(INSTRUMENTS, iter(()), None))
    content = encoder.begin() + b"".join(map(encoder.rows, table.to_batches())) + encoder.end()
    path = tmp_path / "out.csv"
    path.write_bytes(content)
    assert read_instruments(path, "none") == (table, [])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty; the first line names the columns"),
        (b"exchange,name\n", "1: no column 'symbol'"),
        (b"symbol,price\n", "1: column 2: 'price' is none of exchange, symbol, name"),
        (b"symbol,name,name\n", "1: column 3: 'name' again"),
        (b"symbol\nA\n\xff\n", "3: not UTF-8: byte 0xff"),
        (b'symbol\nA\n"B"x\n', "3: no CSV"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(content)
    with pytest.raises(FeedError, match=f"{path}:? ?{why}"):
        read_instruments(path, "ASX")


@pytest.mark.parametrize(
    ("exchange", "why"),
    [("A.SX", "exchange 'A.SX' has a point"), (" ", "exchange ' ' is empty")],
)
def test_an_exchange_is_refused_wherever_it_is_said(
    tmp_path: Path, exchange: str, why: str
) -> None:
    """In a row it is a bad row; for all rows there is nothing to load."""
    path = tmp_path / "f.csv"
    path.write_text("symbol\nA\n")
    options = ["load", "--kind", "instruments", "--exchange", exchange, str(path)]
    done = CliRunner().invoke(cli, options)
    assert (done.exit_code, done.stderr) == (2, f"k2: {why}\n")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match=r"none\.csv: No such file"):
        read_instruments(tmp_path / "none.csv", "ASX")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--kind", "instruments", "--symbol", "A"], "are not for instruments"),
        (["--kind", "instruments", "--rate", "1"], "are not for instruments"),
        (["--kind", "trades", "--format", "asx"], "--kind trades needs --format and --symbol"),
        (["--kind", "quotes", "--symbol", "A"], "--kind quotes needs --format and --symbol"),
    ],
)
def test_load_says_which_options_do_not_fit(options: list[str], why: str) -> None:
    done = CliRunner().invoke(load, [*options, "f.csv"])
    assert (done.exit_code, why in done.stderr) == (2, True), done.stderr


# -- the table


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("K2_DATA", str(tmp_path))  # the module makes the app at import
    return importlib.import_module("k2.tables.instruments")


@pytest.fixture
def table(module: Any) -> Any:
    return module.InstrumentsTable(module.app)


def put(table: Any, *records: tuple[bytes | None, bytes | None], first: int = 0) -> None:
    for offset, (key, value) in enumerate(records, first):
        message = SimpleNamespace(tp=PLACE, offset=offset, key=key, value=value)
        table.apply_changelog_batch([SimpleNamespace(message=message)])


def test_the_newest_value_counts_and_null_removes(table: Any) -> None:
    """A record without a key names nothing; of none is read twice."""
    assert table.persisted_offset(PLACE) is None
    put(table, (b"A", b"1"), (b"B", b"1"), (b"A", b"2"), (b"B", None), (b"C", None), (None, b"x"),
        (None, None), (b"D", b""))  # fmt: skip
    assert table.pairs() == {b"A": b"2", b"D": b""}
    assert table.persisted_offset(PLACE) == 7


def test_what_is_bad_is_left_out_counted_and_logged_once(
    module: Any,
    table: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An id that is not known now is asked for again, after a while."""
    known = schemas()
    instruments = module.Instruments(table, known)
    bad = {name.encode(): value for name, (_, value, _) in BAD.items()}
    put(table, *bad.items(), (b"ASX.BHP", GOOD))
    before = module.metrics.instruments_bad_total._value.get()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert instruments.rows(None, None).to_pylist() == [ROW]
    assert len(caplog.records) == len(bad)
    assert module.metrics.instruments_bad_total._value.get() - before == len(bad)
    assert instruments.one("ASX", "RIO") is None

    put(
        table, (b"ASX.BHP", None), (b"no frame", b"other"), (b"ASX.RIO", b"\0\0\0\0\x09" + GOOD[5:])
    )
    with caplog.at_level(logging.WARNING):
        assert instruments.rows(None, None).num_rows == 0
    assert len(caplog.records) == len(bad) + 2
    rio = ROW | {"symbol": "RIO"}
    put(table, (b"ASX.RIO", values([rio], 9)[0]))
    assert instruments.one("ASX", "RIO") is None
    known[9] = INSTRUMENT_AVRO  # registered later
    assert instruments.one("ASX", "RIO") is None
    monkeypatch.setattr("k2.codec.instruments.ASK_AGAIN_S", 0.0)
    (found,) = instruments.one("ASX", "RIO").to_pylist()
    assert found == rio


async def test_a_registry_that_hangs_holds_up_one_request_and_not_all(
    module: Any, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections and says nothing: what is decoded is answered, the rest refused."""
    questions, asked, over = 0, asyncio.Event(), asyncio.Event()

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal questions
        questions += 1
        await reader.readuntil(b"\r\n\r\n")
        if questions == 1:
            body = orjson.dumps({"schema": orjson.dumps(INSTRUMENT_AVRO).decode()})
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        else:
            asked.set()
            await over.wait()
        writer.close()

    registry = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    port = registry.sockets[0].getsockname()[1]
    instruments = module.Instruments(table, HttpRegistry(f"http://127.0.0.1:{port}"))
    put(table, (b"ASX.BHP", GOOD))
    assert await asyncio.to_thread(instruments.one, "ASX", "BHP") is not None
    put(table, (b"ASX.RIO", b"\0\0\0\0\x09" + GOOD[5:]))

    async def refused() -> None:
        with pytest.raises(RegistryUnavailable, match="/schemas/ids/9: "):
            await asyncio.to_thread(instruments.rows, None, None)

    monkeypatch.setattr("k2.registry._TIMEOUT_S", 0.2)
    monkeypatch.setattr("k2.codec.instruments.ASK_AGAIN_S", 60.0)
    await asyncio.gather(*[refused() for _ in range(3)])
    assert questions == 2  # only the first of them has asked
    monkeypatch.setattr("k2.registry._TIMEOUT_S", 60.0)
    monkeypatch.setattr("k2.codec.instruments.ASK_AGAIN_S", 0.0)
    asked.clear()
    again = asyncio.create_task(refused())
    await asked.wait()
    async with asyncio.timeout(20):  # it has 60 s
        for _ in range(8):
            await refused()
            assert await asyncio.to_thread(instruments.one, "ASX", "BHP") is not None
    assert not again.done()
    over.set()
    await again
    assert questions == 3
    registry.close()


def test_rows_are_selected_and_ordered(module: Any, table: Any) -> None:
    rows = [ROW | {"exchange": e, "symbol": s} for e, s in (("B", "Z"), ("B", "Y"), ("A", "Y"))]
    put(table, *((key_of(r["exchange"], r["symbol"]), v)
                 for r, v in zip(rows, values(rows), strict=True)))  # fmt: skip
    instruments = module.Instruments(table, schemas())
    for exchange, symbols, wanted in (
        (None, None, ["A.Y", "B.Y", "B.Z"]),
        ("B", None, ["B.Y", "B.Z"]),
        (None, ["Y"], ["A.Y", "B.Y"]),
        ("B", ["Z", "Q"], ["B.Z"]),
        ("C", None, []),
    ):
        found = instruments.rows(exchange, symbols)
        assert found.schema == INSTRUMENTS
        assert [f"{r['exchange']}.{r['symbol']}" for r in found.to_pylist()] == wanted


async def test_the_table_neither_makes_nor_writes_its_topic(table: Any) -> None:
    """To declare it needs no producer; to write it is refused."""
    assert table._changelog_topic_name() == table.changelog_topic_name == "market.instruments"
    await table.changelog_topic.maybe_declare()
    await table.changelog_topic.clone_using_queue(None).maybe_declare()
    with pytest.raises(TypeError, match=r"market\.instruments is written by `k2 load`"):
        table.send_changelog(0, b"A", b"1")


def test_a_worker_has_these_tables_and_agents(tmp_path: Path) -> None:
    """Faust only logs it when a module cannot be imported, and starts without."""
    code = (
        "from k2.app import app; app.discover();"
        "print(sorted(t for t in app.tables), sorted(app.agents), "
        "[t for t in app.tables if app.tables[t].is_global])"
    )
    env = environment(K2_DATA=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['instruments', 'symbols'] ['quotes', 'trades'] ['instruments']\n"


# -- the views


async def test_views_answer_503_until_all_has_been_read(module: Any, table: Any) -> None:
    put(table, (b"ASX.BHP", GOOD))
    app = web.Application(middlewares=middlewares())
    app.add_routes(routes(Own(module.Instruments(table, schemas()))))
    async with TestServer(app) as server, ClientSession(server.make_url("/")) as client:
        for path in ("/v1/instruments", "/v1/instruments/ASX/BHP"):
            async with client.get(path) as answer:
                assert answer.status == 503
                assert "still being read" in (await answer.json(content_type=None))["detail"]
        await table.on_recovery_completed({PLACE}, set())
        async with client.get("/v1/instruments/ASX/BHP") as answer:
            found = orjson.loads(await answer.read())
        assert answer.status == 200
        plain = {"tick_size": "0.01", "lot_size": "1", "listed": "1885-08-13"}
        assert found == ROW | plain
        for path, status in (
            ("/v1/instruments/ASX/BHP?format=csv", 400),
            ("/v1/instruments?limit=0", 400),
            ("/v1/instruments?limit=1", 200),
            ("/v1/instruments?format=xml", 400),
            ("/v1/instruments/ASX/%0A", 404),
            ("/v1/instruments/ASX", 404),
        ):
            async with client.get(path) as answer:
                assert answer.status == status, path


def test_a_registry_keeps_the_schema(tmp_path: Path) -> None:
    registry = FileRegistry(tmp_path / "registry.json")
    schema_id = registry.register("market.instruments-value", INSTRUMENT_AVRO)
    (value,) = values([ROW], schema_id)
    assert table_of([InstrumentReader(registry).read(b"ASX.BHP", value)]).to_pylist() == [ROW]
