"""Apache Kafka itself as a plain Java process: one node, broker and controller, on loopback."""

from __future__ import annotations

import base64
import os
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from k2.dev.broker import HOST, Broker, free_port, port_is_free
from k2.dev.children import Child
from k2.dev.jars import fetch, tool
from k2.errors import BrokerUnavailable

__all__ = ["Kafka", "Secured"]

FORMAT_TIMEOUT_S = 60.0
HEAP = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC")

#: What a cluster of one node needs; the rest are Kafka's defaults, as production has them.
_ONE_NODE = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",  # 3 s by default, for the workers of a big group
    "auto.create.topics.enable": "false",
    # A node that was killed is taken for alive this long, and its successor may not register.
    "broker.session.timeout.ms": "4000",  # 9 s by default
    "broker.heartbeat.interval.ms": "500",
}


@dataclass(frozen=True, slots=True)
class Secured:
    """A second listener, with TLS and SASL/PLAIN."""

    keystore: Path  # PKCS12: the broker's key and certificate
    keystore_password: str = field(repr=False)
    users: Mapping[str, str] = field(repr=False)  # password by user


class Kafka(Broker):
    """One Kafka node. Its log and cluster id stay in `data`, whatever ends the process.

    Started again, it has the same address; `child` takes signals in between.
    """

    name = "Kafka"
    start_timeout_s = 60.0
    stop_timeout_s = 10.0

    def __init__(
        self,
        data: Path,
        port: int = 0,
        *,
        options: Mapping[str, str] | None = None,
        secured: Secured | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            data: log, configuration and output go below it.
            port: of the plain listener; 0: any free one, chosen at the first start.
            options: more of Kafka's broker settings.
            secured: a second listener, at `secure_address`.
        """
        self._folder = data / "kafka"
        self._log = data / "log" / "kafka.log"
        self._port, self._controller_port, self._secure_port = port, 0, 0
        self._options, self._secured = dict(options or {}), secured
        self.secure_address = ""

    def _prepare(self) -> Child:
        java, jars = tool("java"), fetch()
        self._port = self._port or free_port()
        self._controller_port = self._controller_port or free_port()
        if self._secured:
            self._secure_port = self._secure_port or free_port()
            self.secure_address = f"{HOST}:{self._secure_port}"
        for port in (self._port, self._controller_port, self._secure_port):
            if port and not port_is_free(HOST, port):
                raise BrokerUnavailable(f"Kafka: port {port} on {HOST} is in use")
        self.address = f"{HOST}:{self._port}"
        self._folder.mkdir(parents=True, exist_ok=True)
        configuration = self._configure()
        run = [java, *HEAP, "-Dlog4j2.level=WARN", "-cp", f"{jars}/*"]
        self.cluster_id = _former_id(self._folder / "log") or self._format(run, configuration)
        argv = [*run, "kafka.Kafka", str(configuration)]
        return Child("kafka", argv, os.environ, self._log)

    def _configure(self) -> Path:
        listeners = {"PLAINTEXT": self._port}
        options = dict(_ONE_NODE)
        if self._secured:
            listeners["SASL_SSL"] = self._secure_port
            options |= _secure(self._secured)
        reached = ",".join(f"{name}://{HOST}:{port}" for name, port in listeners.items())
        options |= {
            "listeners": f"{reached},CONTROLLER://{HOST}:{self._controller_port}",
            "advertised.listeners": reached,
            "listener.security.protocol.map": ",".join(
                [*(f"{name}:{name}" for name in listeners), "CONTROLLER:PLAINTEXT"]
            ),
            "controller.quorum.voters": f"1@{HOST}:{self._controller_port}",
            "log.dirs": str(self._folder / "log"),
        }
        options |= self._options
        file = self._folder / "server.properties"
        file.touch(mode=0o600)  # it holds the passwords
        file.write_text("".join(f"{name}={value}\n" for name, value in options.items()))
        return file

    def _format(self, run: list[str], configuration: Path) -> str:
        """Make the log folder, as every new Kafka node wants it; return its new cluster id."""
        identity = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        argv = [*run, "kafka.tools.StorageTool", "format", f"--cluster-id={identity}"]
        done = subprocess.run(
            [*argv, "--config", str(configuration)],
            capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise BrokerUnavailable(
                f"Kafka: {self._folder} could not be formatted ({done.returncode}):\n"
                f"{done.stdout}{done.stderr}"
            )
        return identity


def _former_id(log: Path) -> str:
    try:
        lines = (log / "meta.properties").read_text().splitlines()
    except FileNotFoundError:
        return ""
    return dict(line.split("=", 1) for line in lines if "=" in line).get("cluster.id", "")


def _secure(secured: Secured) -> dict[str, str]:
    users = " ".join(f'user_{name}="{password}"' for name, password in secured.users.items())
    login = "org.apache.kafka.common.security.plain.PlainLoginModule"
    return {
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{login} required {users};",
        "listener.name.sasl_ssl.ssl.keystore.type": "PKCS12",
        "listener.name.sasl_ssl.ssl.keystore.location": str(secured.keystore),
        "listener.name.sasl_ssl.ssl.keystore.password": secured.keystore_password,
    }
