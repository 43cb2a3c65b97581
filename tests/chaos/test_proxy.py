"""Faults of the network before a catalog and a store, as SeaweedFS has them, and what K2 does."""

from __future__ import annotations

import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow.fs import S3FileSystem

from k2.dev.broker import Embedded
from k2.dev.seaweed import SeaweedFS
from k2.dev.stack import init
from k2.errors import CatalogUnavailable, CommitFailed, Fenced
from k2.feeds.producer import produce
from k2.feeds.simulate import Simulation
from k2.lake.audit import audit
from k2.lake.catalog import ensure_tables, load_table, open_catalog, table_name
from k2.lake.commit import Sink
from k2.lake.states import inherit, rebuild
from k2.query.engine import Engine
from k2.schemas import TRADES
from k2.sequence import Rules
from k2.settings import Settings
from tests.chaos.proxy import (
    Kind,
    Predicate,
    Proxy,
    anything,
    commits,
    data_files,
    manifests,
    reads,
)
from tests.integration.oracle import check as oracle
from tests.integration.parts import QUICK, Worker, committed, until, verify
from tests.unit.test_lake_commit import A, rows

pytestmark = pytest.mark.slow

LAKE_S, COMMIT_S = 1.0, 2.0
#: PyArrow tries a request thrice, notices silence a second late, and waits up to 2 s in between.
S3_S = 3 * (LAKE_S + 1) + 2 * 2
#: A write is one file; when its request fails, PyArrow may ask once more, to take it back.
WRITE_S = 2 * S3_S
#: The last attempt of a commit begins before its deadline, with a load of the table.
COMMIT_MAX_S = COMMIT_S + LAKE_S + S3_S


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """One for all tests here: a namespace each. Where it is not installed, only CI fails."""
    store = SeaweedFS(tmp_path_factory.mktemp("seaweed"))
    try:
        store.start()
    except CatalogUnavailable as exc:
        if os.environ.get("CI") or "not installed" not in str(exc):
            raise
        pytest.skip(str(exc))
    yield store
    store.stop()


@dataclass(frozen=True)
class Way:
    """The same lake twice: directly, and through the proxies."""

    direct: Settings
    through: Settings
    catalog: Proxy
    s3: Proxy

    def holds(self) -> int:
        """The next offset of A: all rows below it are there once, and nothing else."""
        catalog = open_catalog(self.direct)
        assert audit(catalog, self.direct).passed
        table = load_table(catalog, table_name(self.direct, TRADES))
        found = sorted(table.scan().to_arrow()["kafka_offset"].to_pylist())
        end = Sink(catalog, table_name(self.direct, TRADES), self.direct).offsets().get(A, 0)
        assert found == list(range(end))
        return end


@contextmanager
def proxies(store: SeaweedFS, data: Path, **more: object) -> Iterator[Way]:
    direct = Settings(
        data=data,
        namespace=f"n{uuid.uuid4().hex}",
        **{"lake_timeout_ms": int(LAKE_S * 1000), "commit_timeout_ms": int(COMMIT_S * 1000)}
        | more
        | store.settings,
    )
    with (
        Proxy(direct.catalog_uri, "catalog") as catalog,
        Proxy(direct.s3_endpoint, "s3") as s3,
    ):
        through = replace(direct, catalog_uri=catalog.url, s3_endpoint=s3.url)
        yield Way(direct, through, catalog, s3)


@pytest.fixture
def way(store: SeaweedFS, tmp_path: Path) -> Iterator[Way]:
    with proxies(store, tmp_path) as way:
        ensure_tables(open_catalog(way.direct), way.direct)
        yield way


def sink_of(settings: Settings) -> Sink:
    return Sink(open_catalog(settings), table_name(settings, TRADES), settings)


def append(sink: Sink, offset: int) -> None:
    sink.commit(sink.write(rows([offset])), {A: offset or None}, {A: offset + 1})


def test_k2_works_through_proxies(way: Way) -> None:
    """Tables, commits, expiry, queries and the audit; everything went through, nothing beside."""
    ensure_tables(open_catalog(way.through), way.through)
    sink = sink_of(way.through)
    for offset in range(12):
        append(sink, offset)
    found = Engine(open_catalog(way.through), way.through).records(TRADES, "SIM", "S0").read_all()
    assert found.num_rows == 12
    assert audit(open_catalog(way.through), way.through).passed
    assert way.holds() == 12
    assert way.catalog.requests > 12
    assert way.s3.requests > 12 * 4


def test_bytes_pass_unharmed(way: Way) -> None:
    """Names that need encoding, a large upload in parts, ranges, and listings."""
    through = way.through
    files = S3FileSystem(
        access_key=through.s3_access_key,
        secret_key=through.s3_secret_key,
        region=through.s3_region,
        endpoint_override=through.s3_endpoint,
        allow_bucket_creation=True,
    )
    bucket = f"b{uuid.uuid4().hex}"
    files.create_dir(bucket)
    body = os.urandom(1 << 20) * 24
    path = f"{bucket}/day=1/a b%2Fc+ä&=.bin"
    with files.open_output_stream(path) as stream:
        stream.write(body)
    with files.open_input_file(path) as file:
        assert file.size() == len(body)
        assert file.read_at(1000, 7_000_003) == body[7_000_003:7_001_003]
        assert file.read() == body
    (info,) = files.get_file_info([path])
    assert (info.path, info.size) == (path, len(body))
    files.delete_file(path)


#: What happens, at which proxy, to which requests, more of it, what is said then ("": nothing, it
#: is got over), and whether the rows may be there all the same.
FAULTS: dict[str, tuple[str, Kind, Predicate, dict[str, object], str, bool]] = {
    "catalog answers 503": ("catalog", Kind.ERROR, commits, {}, "ServiceUnavailable", False),
    "catalog answers 503 now and then": (
        "catalog", Kind.ERROR, anything, {"share": 0.5, "seed": 1}, "", True),
    "catalog answers 500, unknown": (
        "catalog", Kind.ERROR, commits, {"status": 500, "times": 2}, "", True),
    "catalog slow": ("catalog", Kind.SLOW, anything, {"seconds": 0.3}, "", True),
    "catalog trickles": ("catalog", Kind.TRICKLE, commits, {"seconds": 0.005}, "", True),
    "catalog cut before": ("catalog", Kind.CUT_BEFORE, commits, {"times": 2}, "", True),
    "catalog cut before, for long": ("catalog", Kind.CUT_BEFORE, commits, {}, "Connection", False),
    "catalog cut after": ("catalog", Kind.CUT_AFTER, commits, {}, "", True),
    "catalog cut within": ("catalog", Kind.CUT_WITHIN, commits, {}, "", True),
    "catalog cut after, all of it": ("catalog", Kind.CUT_AFTER, anything, {}, "Connection", True),
    "catalog down": ("catalog", Kind.DOWN, anything, {}, "Connection refused", False),
    "catalog hangs": ("catalog", Kind.HANG, commits, {}, "Read timed out", True),
    "catalog hangs, all of it": ("catalog", Kind.HANG, anything, {}, "Read timed out", True),
    "S3 answers 503": ("s3", Kind.ERROR, data_files, {}, "SLOW_DOWN", False),
    "S3 answers 503 now and then": ("s3", Kind.ERROR, anything, {"every": 4}, "", True),
    "S3 answers 503 to manifests": ("s3", Kind.ERROR, manifests, {}, "SLOW_DOWN", False),
    "S3 slow": ("s3", Kind.SLOW, anything, {"seconds": 0.1}, "", True),
    "S3 trickles": ("s3", Kind.TRICKLE, reads, {"seconds": 0.005}, "", True),
    "S3 cut before": ("s3", Kind.CUT_BEFORE, data_files, {"times": 2}, "", True),
    "S3 cut after": ("s3", Kind.CUT_AFTER, manifests, {"times": 1}, "", True),
    "S3 cut within": ("s3", Kind.CUT_WITHIN, reads, {}, "NETWORK_CONNECTION", False),
    "S3 down": ("s3", Kind.DOWN, anything, {}, "NETWORK_CONNECTION", False),
    "S3 hangs": ("s3", Kind.HANG, anything, {}, "NETWORK_CONNECTION", False),
    "S3 hangs for manifests": ("s3", Kind.HANG, manifests, {}, "NETWORK_CONNECTION", False),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_got_over_or_named_and_loses_and_doubles_nothing(name: str, way: Way) -> None:
    where, kind, when, more, said, may_stand = FAULTS[name]
    proxy = way.catalog if where == "catalog" else way.s3
    sink = sink_of(way.through)
    append(sink, 0)
    started = time.monotonic()
    with proxy.fault(kind, when, **more) as fault:
        if said:
            with pytest.raises(CommitFailed, match=said) as failed:
                append(sink, 1)
            assert table_name(way.direct, TRADES) in str(failed.value)
        else:
            append(sink, 1)
        took_s = time.monotonic() - started
    assert fault.hits > 0 or kind is Kind.DOWN
    assert took_s < WRITE_S + COMMIT_MAX_S
    found = way.holds()
    assert found in ((1, 2) if may_stand and said else (1,) if said else (2,))
    # What a worker does then: the same once more. A commit that stands is not repeated.
    if found == 1:
        append(sink, 1)
    else:
        with pytest.raises(Fenced, match="expected next offset 1, found 2"):
            append(sink, 1)
    assert way.holds() == 2


def test_commit_that_arrives_late_does_nothing(way: Way) -> None:
    """It hung on the way; its sender gave up, tried again, and was told that it had failed."""
    sink = sink_of(way.through)
    append(sink, 0)
    with way.catalog.fault(Kind.HANG, commits) as fault:
        with pytest.raises(CommitFailed, match="Read timed out"):
            append(sink, 1)
        append(sink_of(way.direct), 1)
        assert fault.hits > 0
    append(sink_of(way.through), 2)
    assert way.holds() == 3


@pytest.mark.parametrize("kind", [Kind.ERROR, Kind.CUT_WITHIN, Kind.DOWN, Kind.HANG])
def test_reads_fail_as_catalog_unavailable_in_time(kind: Kind, way: Way) -> None:
    """Of the catalog: opening, tables, offsets. Of the store: states, for which rows are read."""
    sink = sink_of(way.through)
    append(sink, 0)
    with way.catalog.fault(kind):
        for read in (
            lambda: open_catalog(way.through),
            lambda: ensure_tables(sink.catalog, way.through),
            lambda: load_table(sink.catalog, table_name(way.through, TRADES)),
            sink.offsets,
            sink.carried,
        ):
            started = time.monotonic()
            with pytest.raises(CatalogUnavailable):
                read()
            # `open_catalog` and `ensure_tables` end with the first request that fails.
            assert time.monotonic() - started < LAKE_S + 1
    other = A._replace(cluster="another")
    sink.commit(sink.write(rows([0], other)), {other: None}, {other: 1})
    rules = Rules(way.direct.exchange_zones, way.direct.reset_window_ms, way.direct.gaps_open_max)
    with way.s3.fault(kind, reads):
        for read in (
            lambda: rebuild(sink.catalog, way.through, TRADES, A, {}, 0, 1, rules),
            lambda: inherit(sink.catalog, way.through, TRADES, other, [A, other], rules),
        ):
            started = time.monotonic()
            with pytest.raises(CatalogUnavailable):
                read()
            assert time.monotonic() - started < 2 * S3_S
    assert rebuild(sink.catalog, way.through, TRADES, A, {}, 0, 1, rules)


@pytest.mark.parametrize("kind", [Kind.ERROR, Kind.CUT_AFTER, Kind.HANG])
def test_expiry_that_fails_leaves_the_commit_standing(
    kind: Kind, way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    """The second POST of the same commit is the expiry's."""
    settings = replace(
        way.through, snapshots_keep=1, snapshot_age_min_ms=0, snapshots_expire_every=1
    )
    sink = sink_of(settings)
    for offset in range(3):
        append(sink, offset)
    with way.catalog.fault(kind, commits, every=2) as fault:
        append(sink, 3)
        assert fault.hits == 1
    assert "snapshots not expired" in caplog.text
    append(sink, 4)
    assert way.holds() == 5


def test_sigterm_ends_a_worker_whose_lake_hangs(store: SeaweedFS, tmp_path: Path) -> None:
    """Within its deadline, with exit code 0; what it had in hand is read again."""
    simulation = Simulation(7, 10, 5000)
    stream, journal = list(simulation), simulation.journal
    defaults = {"lake_timeout_ms": 10_000, "commit_timeout_ms": 30_000, **QUICK}
    whole = pa.concat_tables(stream)
    half = whole.num_rows // 2
    with (
        Embedded(tmp_path) as broker,
        proxies(store, tmp_path, broker=broker.address, exchanges="SIM", **defaults) as way,
    ):
        init(way.direct)
        topic = TRADES.topic("SIM")
        for proxy, part in ((way.catalog, whole[:half]), (way.s3, whole[half:])):
            with Worker(way.through, "a") as worker:
                worker.await_ready()
                with proxy.fault(Kind.HANG) as fault:
                    produce([part], topic, way.direct)
                    until(lambda fault=fault: fault.hits, 30, worker.tail)
                    worker.child.signal(signal.SIGTERM)
                    ended = way.direct.shutdown_timeout_ms / 1000 + 10
                    code = until(
                        lambda worker=worker: (
                            (worker.child.poll(),) if worker.child.poll() is not None else None
                        ),
                        ended,
                        worker.tail,
                    )
                    assert code == (0,), worker.tail()
        with Worker(way.through, "a") as worker:
            until(lambda: committed(way.direct) == journal.sent, 60, worker.tail)
            worker.terminate()
        verify(way.direct)
        oracle(way.direct, stream, journal)


def test_worker_gets_over_faults_of_both_in_midstream(store: SeaweedFS, tmp_path: Path) -> None:
    """One after another, each for a few seconds, while trades come in."""
    simulation = Simulation(8, 20, 20_000, gaps=10, duplicates=10, late=10)
    stream = list(simulation)
    limits = {"lake_timeout_ms": 1000, "commit_timeout_ms": 3000, **QUICK}
    with (
        Embedded(tmp_path) as broker,
        proxies(store, tmp_path, broker=broker.address, exchanges="SIM", **limits) as way,
    ):
        init(way.direct)
        topic, whole = TRADES.topic("SIM"), pa.concat_tables(stream)
        faults = (
            (way.catalog, Kind.CUT_AFTER, commits, {"times": 2}),
            (way.s3, Kind.ERROR, anything, {"share": 0.2, "seed": 8}),
            (way.catalog, Kind.HANG, commits, {}),
            (way.s3, Kind.HANG, anything, {}),
            (way.catalog, Kind.DOWN, anything, {}),
        )
        with Worker(way.through, "a") as worker:
            worker.await_ready()
            for number, (proxy, kind, when, more) in enumerate(faults):
                first, last = (whole.num_rows * n // len(faults) for n in (number, number + 1))
                with proxy.fault(kind, when, **more) as fault:
                    produce([whole[first:last]], topic, way.direct)
                    if kind is not Kind.DOWN:
                        until(lambda fault=fault: fault.hits, 30, worker.tail)
                    time.sleep(3.0)  # longer than the limits: commits fail and are tried again
            total = sum(simulation.journal.rows.values())
            until(lambda: committed(way.direct) >= total, 60, worker.tail)
            worker.terminate()
        verify(way.direct)
        oracle(way.direct, stream, simulation.journal)


def test_down_refuses_connections_and_comes_back_at_its_port(way: Way) -> None:
    port = int(way.s3.url.rpartition(":")[2])
    with way.s3.fault(Kind.DOWN), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1.0)
    append(sink_of(way.through), 0)
    assert way.holds() == 1
