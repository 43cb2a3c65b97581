"""The views on a real server over a real Iceberg table."""

import datetime as dt
import gzip
import io
import zlib
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from k2.errors import BadQuery
from k2.lake.catalog import ensure_tables, load_table, open_catalog, table_name
from k2.query.engine import Engine
from k2.query.times import interval_ns, time_ns
from k2.schemas import TRADES
from k2.settings import Settings
from k2.web.answers import middlewares
from k2.web.codings import CODINGS, Packer, coding_of
from k2.web.formats import MEDIA_TYPES, choose
from k2.web.views import routes

START = 1394409600_000_000_000
ROWS = 40_000  # more than one batch


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    settings = Settings(data=Path(tmp_path_factory.mktemp("lake")))
    catalog = open_catalog(settings)
    ensure_tables(catalog, settings)
    numbers = pa.array(range(ROWS), pa.int64())
    ts = pa.array([START + n * 1000 for n in range(ROWS)], pa.int64())
    same = {
        "exchange": "ASX",
        "symbol": "BHP",
        "session": dt.date(2014, 3, 10),
        "price": "36.667",
        "size": "0.00000001",
        "side": "NONE",
        "trade_id": None,
        "conditions": 'a,"b',
        "venue": "X",
        "verdict": "ok",
        "kafka_cluster": "c",
        "kafka_topic": "t",
        "kafka_partition": 0,
    }
    arrays = []
    for f in TRADES.table:
        if f.name in same:
            value = pa.scalar(same[f.name])
            column = pa.array([value.as_py()] * ROWS).cast(f.type)
        elif f.name in ("event_time", "ingest_time"):
            column = pa.array([t // 1000 for t in ts.to_pylist()], pa.int64()).cast(f.type)
        else:
            column = numbers if f.name in ("sequence", "kafka_offset") else ts
        arrays.append(column)
    load_table(catalog, table_name(settings, TRADES)).append(
        pa.Table.from_arrays(arrays, schema=TRADES.table)
    )
    engine = Engine(catalog, settings)
    yield engine
    engine.close()


@pytest.fixture
async def get(engine):
    state = {"ready": (True, {})}
    app = web.Application(middlewares=middlewares())
    app.add_routes(routes(engine, ready=lambda: state["ready"]))
    async with TestServer(app) as server, ClientSession(auto_decompress=False) as session:

        async def call(path, headers=None):
            headers = {"Accept-Encoding": "identity", **(headers or {})}
            async with session.get(server.make_url(path), headers=headers) as response:
                return response, await response.read()

        call.state = state
        yield call


async def test_json_has_exact_decimals_and_says_what_was_cut(get):
    response, body = await get("/v1/trades?symbol=BHP&exchange=ASX&limit=2")
    answer = orjson.loads(body)
    assert response.status == 200
    assert (answer["count"], answer["truncated"], len(answer["data"])) == (2, True, 2)
    assert answer["data"][1] | {"price": "36.667", "size": "0.00000001"} == answer["data"][1]
    assert answer["data"][1]["ts_event"] == START + 1000
    assert response.headers["X-K2-Truncated"] == "true"
    assert response.headers["X-K2-Snapshot-Id"] == str(answer["snapshot_id"])


async def test_every_format_gives_every_row(get):
    path = "/v1/trades?symbol=BHP&format="
    _, body = await get(path + "json")
    rows = orjson.loads(body)["data"]
    assert len(rows) == ROWS
    _, body = await get(path + "ndjson")
    assert [orjson.loads(line) for line in body.splitlines()] == rows
    _, body = await get(path + "csv")
    header, first, *rest = body.decode().splitlines()
    assert len(rest) == ROWS - 1
    cells = dict(zip(header.split(","), first.replace('"a,""b"', "Q").split(","), strict=True))
    assert (cells["price"], cells["size"], cells["conditions"]) == ("36.667", "0.00000001", "Q")
    _, body = await get(path + "arrow")
    table = pa.ipc.open_stream(body).read_all()
    assert table.num_rows == ROWS
    assert table.schema.field("price").type == pa.decimal128(18, 8)
    _, body = await get(path + "parquet")
    assert pq.read_table(io.BytesIO(body)).combine_chunks() == (
        table.replace_schema_metadata(None).combine_chunks()
    )


async def test_a_range_is_that_of_its_start_and_end(get):
    """The same rows on every resource that has times, whichever way they are named."""
    span = "start=2014-03-10T00:00:00.001&end=2014-03-10T00:00:00.003"
    within = "range=@2014-03-10T00:00:00.001:2ms"
    for path in ("/v1/trades?symbol=BHP&", "/v1/bars?symbol=BHP&interval=1ms&", "/v1/gaps?"):
        (_, one), (_, other) = await get(path + span), await get(path + within)
        assert orjson.loads(one) == orjson.loads(other)
    (_, body) = await get(f"/v1/trades?{within}")
    assert orjson.loads(body)["count"] == 2000


def unpacked(coding, body):
    if coding == "gzip":
        return gzip.decompress(body)
    if coding == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    assert coding is None
    return body


@pytest.mark.parametrize("form", MEDIA_TYPES)
async def test_every_format_comes_compressed_as_it_is_plain(get, form):
    """But Parquet, which is compressed within."""
    path = f"/v1/trades?symbol=BHP&format={form}"
    _, plain = await get(path, {"Accept-Encoding": "identity"})
    for accept, coding in (("gzip, deflate, br", "gzip"), ("gzip, zstd", "zstd")):
        response, body = await get(path, {"Accept-Encoding": accept})
        found = response.headers.get("Content-Encoding")
        assert found == (None if form == "parquet" else coding)
        assert response.headers["Vary"] == "Accept, Accept-Encoding"
        assert unpacked(found, body) == plain
        assert form == "parquet" or len(body) < len(plain) / 4


async def test_what_is_sent_can_be_read_at_once(get):
    """A coding holds nothing back: the rows of a batch are there when the batch is."""
    for coding in CODINGS:
        packer = Packer(coding)
        sent = b""
        for n in range(5):
            sent += packer(b"row %d\n" % n)
            reader = zlib.decompressobj(31) if coding == "gzip" else zstd_reader()
            assert reader.decompress(sent) == b"".join(b"row %d\n" % k for k in range(n + 1))


def zstd_reader():
    return zstandard.ZstdDecompressor().decompressobj()


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("", "identity"),
        ("br", "identity"),
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip"),
        ("zstd;q=0, gzip;q=0.1", "gzip"),
        ("*", "zstd"),
        ("*;q=0.5, zstd;q=0", "gzip"),
        ("identity, gzip;q=0.5", "identity"),
        ("gzip;q=0", "identity"),
        ("identity;q=0", None),
        ("*;q=0", None),
        ("br, *;q=0", None),
        ("identity;q=0, gzip", "gzip"),
        ("gzip;q=much", "identity"),
    ],
)
def test_the_coding_is_the_best_that_the_client_takes(accept, coding):
    assert coding_of(accept) == coding


async def test_a_client_that_takes_no_coding_is_told(get):
    response, body = await get("/v1/trades?limit=1", {"Accept-Encoding": "identity;q=0, br"})
    assert (response.status, response.content_type) == (406, "application/problem+json")
    assert b"zstd, gzip" in body


async def test_columns_are_those_that_were_asked_for_in_their_order(get):
    path = "/v1/trades?columns=price,kafka_cluster,ts_event&limit=2&format="
    _, body = await get(path + "csv")
    assert body.decode().splitlines()[:2] == ["price,kafka_cluster,ts_event", f"36.667,c,{START}"]
    _, body = await get(path + "arrow")
    assert pa.ipc.open_stream(body).read_all().column_names == [
        "price", "kafka_cluster", "ts_event",
    ]  # fmt: skip


async def test_the_cursor_of_a_cut_answer_goes_on_behind_it_in_any_format(get):
    """To the end, with pages of several sizes; where nothing is cut there is none."""
    asked = "/v1/trades?symbol=BHP&range=2014-03-10:5ms&columns=ts_event"
    response, body = await get(f"{asked}&limit=4000")
    answer = orjson.loads(body)
    assert answer["next"] == response.headers["X-K2-Next"]
    found = [row["ts_event"] for row in answer["data"]]
    response, body = await get(f"{asked}&limit=999&format=ndjson&cursor={answer['next']}")
    found += [orjson.loads(line)["ts_event"] for line in body.splitlines()]
    response, body = await get(f"{asked}&format=arrow&cursor={response.headers['X-K2-Next']}")
    table = pa.ipc.open_stream(body).read_all()
    assert (found + table["ts_event"].to_pylist()) == [START + n * 1000 for n in range(5000)]
    assert response.headers["X-K2-Truncated"] == "false"
    assert "X-K2-Next" not in response.headers
    assert b"k2.next" not in table.schema.metadata


async def test_bars_go_on_behind_a_cursor(get):
    asked = "/v1/bars?symbol=BHP&interval=1ms"
    whole = orjson.loads((await get(asked))[1])["data"]
    response, body = await get(f"{asked}&limit=7")
    found = orjson.loads(body)["data"]
    _, body = await get(f"{asked}&cursor={response.headers['X-K2-Next']}")
    assert found + orjson.loads(body)["data"] == whole
    assert len(whole) == 40


@pytest.mark.parametrize("other", ["trades?symbol=BHP", "quotes", "trades?range=:now"])
async def test_the_cursor_of_another_query_is_refused(get, other):
    _, body = await get("/v1/trades?limit=1")
    sign = "&" if "?" in other else "?"
    response, body = await get(f"/v1/{other}{sign}cursor={orjson.loads(body)['next']}")
    assert (response.status, orjson.loads(body)["parameter"]) == (400, "cursor")


@pytest.mark.parametrize("path", ["trades?limit=1", "bars?symbol=BHP", "symbols", "gaps", "quotes"])
async def test_every_answer_names_its_snapshot_and_through_when_it_is_valid(get, path):
    """Null where it is not known: this lake's one commit is not K2's, and some tables are empty."""
    response, body = await get(f"/v1/{path}")
    answer = orjson.loads(body)
    assert answer["valid_through"] is None
    listed = orjson.loads((await get("/v1/snapshots"))[1])["data"]
    (snapshot,) = [one for one in listed if one["table"] == "trades"]
    if path in ("gaps", "quotes"):
        assert answer["snapshot_id"] is None
        return
    assert answer["snapshot_id"] == snapshot["snapshot_id"]
    assert response.headers["X-K2-Snapshot-Id"] == str(snapshot["snapshot_id"])
    for as_of in (snapshot["snapshot_id"], snapshot["committed_at"], "now"):
        sign = "&" if "?" in path else "?"
        _, then = await get(f"/v1/{path}{sign}as_of={as_of}")
        assert orjson.loads(then) | {"next": None} == answer | {"next": None}


async def test_no_rows_are_an_answer_in_every_format(get):
    _, body = await get("/v1/trades?symbol=NOPE")
    answer = orjson.loads(body)
    assert (answer["data"], answer["count"], answer["truncated"]) == ([], 0, False)
    _, body = await get("/v1/trades?symbol=NOPE&format=arrow")
    assert pa.ipc.open_stream(body).read_all().num_rows == 0


async def test_the_accept_header_chooses_the_format(get):
    response, _ = await get("/v1/symbols", {"Accept": "text/csv;q=0.5, application/x-ndjson"})
    assert response.content_type == "application/x-ndjson"
    response, body = await get("/v1/symbols", {"Accept": "image/png"})
    assert (response.status, orjson.loads(body)["status"]) == (406, 406)


async def test_bars_of_a_symbol(get):
    _, body = await get("/v1/bars?symbol=BHP&exchange=ASX&interval=10ms&end=2014-03-10T00:00:00.02")
    bars = orjson.loads(body)["data"]
    assert [(b["start"], b["trades"], b["volume"], b["vwap"]) for b in bars] == [
        (START, 10_000, "0.0001", "36.667"),
        (START + 10_000_000, 10_000, "0.0001", "36.667"),
    ]


async def test_bars_take_several_symbols_a_fill_and_conditions(get):
    """The condition of every row has a code of its own, and is no auction."""
    named = "/v1/bars?symbol=BHP,RIO&exchange=ASX&interval=20ms&fill=previous"
    _, body = await get(f"{named}&conditions=-auction&start={START}&end=2014-03-10T00:00:00.04")
    assert [(b["symbol"], b["start"] - START, b["trades"]) for b in orjson.loads(body)["data"]] == [
        ("BHP", 0, 20_000),
        ("RIO", 0, 0),
        ("BHP", 20_000_000, 20_000),
        ("RIO", 20_000_000, 0),
    ]
    _, body = await get("/v1/bars?symbol=BHP&conditions=auction")
    assert orjson.loads(body)["data"] == []


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/v1/trades?symbool=BHP", "symbool"),
        ("/v1/trades?symbol=BHP&symbol=RIO", "symbol"),
        ("/v1/trades?symbol=BHP,", "symbol"),
        ("/v1/trades?start=yesterday", "start"),
        ("/v1/trades?start=5&end=5", "start"),
        ("/v1/trades?end=1h", "end"),
        ("/v1/trades?range=2014-03-10", "range"),
        ("/v1/bars?symbol=BHP&range=now:-1h", "range"),
        ("/v1/gaps?range=-1h:now&start=now", "range"),
        ("/v1/trades?columns=price,prize", "columns"),
        ("/v1/trades?columns=price,price", "columns"),
        ("/v1/trades?cursor=eNpNiTkOgDAM", "cursor"),
        ("/v1/trades?as_of=7", "as_of"),
        ("/v1/trades?as_of=now&fresh=true", "as_of"),
        ("/v1/gaps?as_of=7", "as_of"),
        ("/v1/symbols?limit=0", "limit"),
        ("/v1/snapshots?table=bars", "table"),
        ("/v1/trades?limit=-1", "limit"),
        ("/v1/trades?limit=0", "limit"),
        ("/v1/trades?format=xml", "format"),
        ("/v1/trades?exchange=", "exchange"),
        ("/v1/bars", "symbol"),
        ("/v1/bars?symbol=BHP&interval=0s", "interval"),
        ("/v1/bars?symbol=BHP&interval=25h", "interval"),
        ("/v1/bars?symbol=BHP&fill=last", "fill"),
        ("/v1/bars?symbol=BHP&conditions=-", "conditions"),
        ("/v1/status?x=1", "x"),
    ],
)
async def test_a_bad_parameter_is_named_in_a_problem(get, path, parameter):
    response, body = await get(path)
    problem = orjson.loads(body)
    assert (response.status, response.content_type) == (400, "application/problem+json")
    assert (problem["parameter"], problem["status"]) == (parameter, 400)
    assert {"type", "title", "detail"} <= set(problem)
    assert response.headers["X-Request-Id"]


async def test_every_answer_has_a_request_id_and_keeps_the_clients(get):
    for path in ("/v1/trades?limit=1", "/v1/status", "/metrics", "/live", "/ready", "/nowhere"):
        response, _ = await get(path)
        assert response.headers["X-Request-Id"], path
        response, _ = await get(path, {"X-Request-Id": "mine-1"})
        assert response.headers["X-Request-Id"] == "mine-1", path


async def test_ready_gives_its_reasons(get):
    assert (await get("/ready"))[0].status == 200
    get.state["ready"] = (False, {"group": "rebalancing"})
    response, body = await get("/ready")
    assert (response.status, orjson.loads(body)["reasons"]) == (503, {"group": "rebalancing"})


async def test_metrics_and_status_answer(get):
    _, body = await get("/metrics")
    assert b"k2_query_seconds_bucket" in body
    _, body = await get("/v1/status")
    assert orjson.loads(body)["rows"] == ROWS


async def test_an_unknown_path_is_a_problem_too(get):
    response, body = await get("/v1/nowhere")
    assert (response.status, orjson.loads(body)["title"]) == (404, "Not Found")


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1394409600000000001", START + 1),
        ("2014-03-10T00:00:00.000000001", START + 1),
        ("2014-03-10T00:00:00.000000001Z", START + 1),
        ("2014-03-10T11:00:00+11:00", START),
        ("2014-03-10T11:00:00 11:00", START),
        ("2014-03-10", START),
        ("1969-12-31T23:59:59.999999999", -1),
    ],
)
def test_times_are_read_to_the_nanosecond(text, ns):
    assert time_ns("start", text) == ns


def test_intervals_have_units():
    assert [interval_ns("interval", t) for t in ("250ms", "1s", "5m", "1h", "1d")] == [
        250_000_000,
        10**9,
        300 * 10**9,
        3600 * 10**9,
        86400 * 10**9,
    ]
    with pytest.raises(BadQuery, match="interval"):
        interval_ns("interval", "1w")


def test_a_refused_type_is_not_chosen():
    assert choose(None, "application/json;q=0") is None
    assert choose(None, "") == "json"
