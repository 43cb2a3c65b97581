"""The whole of K2 on one machine: broker, topics, Iceberg tables, schemas, N workers."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import IO

from k2.dev.broker import HOST, Embedded, port_is_free
from k2.dev.children import Child, stop_all, supervise
from k2.dev.server import Running
from k2.errors import K2Error, SettingError
from k2.keys import require_keys
from k2.lake.catalog import ensure_tables, open_catalog
from k2.registry import open_registry
from k2.schemas import INSTRUMENT_AVRO, KINDS
from k2.settings import EVERYWHERE, Settings
from k2.topics import INSTRUMENTS_TOPIC, cluster_id, ensure_topics

__all__ = ["Stack", "init", "set_aside_tables"]

READY_TIMEOUT_S = 120.0
READY_POLL_S = 0.2
#: On top of the worker's own flush deadline, before it is killed.
STOP_MARGIN_S = 15.0
EMBEDDED_PORT = 9092
EMBEDDED_SESSION_MS = 6000


def init(settings: Settings) -> list[str]:
    """Create topics, Iceberg tables and schemas that do not exist; safe to repeat.

    Returns:
        Names of the topics created.
    """
    settings.data.mkdir(parents=True, exist_ok=True)
    created = ensure_topics(settings)
    ensure_tables(open_catalog(settings), settings)
    registry = open_registry(settings)
    for kind in KINDS:
        for exchange in settings.exchange_names:
            registry.register(f"{kind.topic(exchange)}-value", kind.avro)
    registry.register(f"{INSTRUMENTS_TOPIC}-value", INSTRUMENT_AVRO)
    return created


def set_aside_tables(data: Path, cluster: str) -> bool:
    """Remove `data`/tables when it belongs to another cluster, and remember this one.

    The tables restore themselves from changelog topics, and offsets in them are those of one
    cluster: with another, recovery would fail or, worse, mix the two.

    Returns:
        Whether tables were removed. Iceberg's rows are never touched.
    """
    memory, tables = data / "cluster.json", data / "tables"
    try:
        former = json.loads(memory.read_text())["cluster_id"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        former = None
    if former == cluster:
        return False
    removed = tables.is_dir() and any(tables.iterdir())
    if removed:
        shutil.rmtree(tables)
    # Written last: a crash in between repeats the removal, the reverse would skip it.
    data.mkdir(parents=True, exist_ok=True)
    partial = memory.with_suffix(".json.part")
    partial.write_text(json.dumps({"cluster_id": cluster}) + "\n")
    os.replace(partial, memory)
    return removed


class Stack(Running):
    """Broker and workers as a context: inside it, all workers are ready."""

    def __init__(
        self,
        settings: Settings,
        workers: int = 1,
        *,
        query: int = 0,
        embedded: bool | None = None,
        tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ) -> None:
        """Nothing is started yet.

        Args:
            settings: those of the workers; `port` is the first worker's.
            workers: 1 or more that ingest, on ports `port`, `port` + 1, ...
            query: so many query workers, on the first of the ports; the others then only ingest.
            embedded: start a broker; None: unless K2_BROKER is in the environment.
            tell: takes each line for people; stderr.
        """
        if workers < 1:
            raise SettingError(f"workers: {workers} is below 1")
        if query < 0:
            raise SettingError(f"query: {query} is below 0")
        if settings.role == "query":
            raise SettingError("role: query: a stack's workers ingest; query workers are --query N")
        if workers + query > 1 and settings.advertise:
            number = workers + query
            raise SettingError(f"advertise: {settings.advertise} is one URL for {number} workers")
        group_secret = settings.group_secret or secrets.token_hex(32)
        self.settings = replace(settings, data=settings.data.resolve(), group_secret=group_secret)
        self.views: list[str] = []
        self._count, self._query = workers, query
        self._embedded = "K2_BROKER" not in os.environ if embedded is None else embedded
        self._tell = tell
        self._broker: Embedded | None = None
        self._workers: list[Child] = []
        self._lock: IO[str] | None = None

    def start(self) -> None:
        """Start all and wait until every worker is ready; on any error all is stopped again.

        Raises:
            BrokerUnavailable, ChildDied, SettingError: see the message.
            K2Error: another stack uses the data folder, or a worker is not ready in 120 s.
        """
        require_keys(self.settings, self.settings.bind)
        try:
            self._take_folder()
            self._start_broker()
            self._use_cluster()
            init(self.settings)
            self._start_workers()
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the workers first, so that they can flush and commit, then the broker."""
        deadline_s = self.settings.shutdown_timeout_ms / 1000 + STOP_MARGIN_S
        stop_all(self._workers, deadline_s)
        if self._broker is not None:
            self._broker.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def supervise(self, stop: threading.Event | None = None) -> None:
        """Watch broker and workers until `stop` is set; raises ChildDied when one ends."""
        supervise(self._children(), stop)

    def _children(self) -> list[Child]:
        broker = self._broker.child if self._broker else None
        return [*([broker] if broker else []), *self._workers]

    def _take_folder(self) -> None:
        # A second stack here would remove the tables under the first one's workers.
        self.settings.data.mkdir(parents=True, exist_ok=True)
        self._lock = (self.settings.data / "stack.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise K2Error(f"{self.settings.data}: another `k2 up` uses this folder") from exc

    def _start_broker(self) -> None:
        if not self._embedded:
            return
        # The default of K2_BROKER where possible: `k2 load` beside us then needs no setting.
        port = EMBEDDED_PORT if port_is_free(HOST, EMBEDDED_PORT) else 0
        self._broker = Embedded(self.settings.data, port)
        self._broker.start()
        # It holds a group join for half the session timeout, which on one machine can be short.
        self.settings = replace(
            self.settings,
            broker=self._broker.address,
            session_timeout_ms=min(self.settings.session_timeout_ms, EMBEDDED_SESSION_MS),
            shutdown_timeout_ms=min(self.settings.shutdown_timeout_ms, EMBEDDED_SESSION_MS - 1000),
        )

    def _use_cluster(self) -> None:
        cluster = cluster_id(self.settings)
        if set_aside_tables(self.settings.data, cluster):
            state = (
                "records that an in-memory broker held and that were not committed when it ended "
                "are gone: send them again, what is there already becomes duplicates"
                if self._embedded
                else "the sequence state is rebuilt from this cluster's changelog topics, if any"
            )
            self._tell(
                f"k2: another Kafka cluster than last time ({cluster}): {state}. "
                "Committed rows stay."
            )

    def _start_workers(self) -> None:
        base = {name: value for name, value in os.environ.items() if not name.startswith("K2_")}
        for own, view in self._planned():
            if not port_is_free(own.bind, own.port):
                # Else the stranger's answer to /ready would be taken for our worker's.
                raise SettingError(f"port: {own.port} on {own.bind} is in use; try --port")
            name = f"worker-{own.worker}"
            argv = [sys.executable, "-m", "k2", "worker"]
            child = Child(name, argv, base | _environment(own), own.data / "log" / f"{name}.log")
            self._workers.append(child)
            child.start()
            self.views.append(view)

    def _planned(self) -> list[tuple[Settings, str]]:
        """The settings of each worker, and where its views are; query workers first."""
        role = "ingest" if self._query else self.settings.role
        named = [(f"query-{n}", "query") for n in range(self._query)]
        named += [(str(n), role) for n in range(self._count)]
        bind = HOST if self.settings.bind in EVERYWHERE else self.settings.bind
        planned = []
        for port, (name, role) in enumerate(named, self.settings.port):
            view = replace(self.settings, port=port, bind=bind, advertise="").url
            url = self.settings.advertise or view  # the workers are all on this machine
            own = replace(self.settings, port=port, worker=name, advertise=url, role=role)
            planned.append((own, view))
        peers = ",".join(view for own, view in planned if own.role != "query")
        return [(replace(own, peers=peers), view) for own, view in planned]

    def _await_ready(self) -> None:
        until = time.monotonic() + READY_TIMEOUT_S
        waiting = dict(zip(self.views, self._workers, strict=True))
        while waiting:
            for child in self._children():
                child.check()
            waiting = {url: child for url, child in waiting.items() if not _ready(url)}
            if waiting and time.monotonic() > until:
                url, child = next(iter(waiting.items()))
                raise K2Error(
                    f"{child.name}: {url}/ready not 200 within {READY_TIMEOUT_S:g} s; "
                    f"end of {child.log}:\n{child.tail()}"
                )
            time.sleep(READY_POLL_S if waiting else 0)


def _environment(settings: Settings) -> dict[str, str]:
    """All settings as variables: what a caller set in code reaches the workers too."""
    return {
        f"K2_{spec.name.upper()}": str(getattr(settings, spec.name)) for spec in fields(settings)
    }


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=2.0) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as refused:
        # A partition may wait for an operator: all else works, and the views say what it is.
        with refused:
            return refused.code == 503 and _only_paused(refused.read())
    except (urllib.error.URLError, OSError):
        return False


def _only_paused(body: bytes) -> bool:
    try:
        return list(json.loads(body)["reasons"]) == ["paused"]
    except (ValueError, LookupError, TypeError):
        return False
