"""Kafka's jars: fetched once from Maven Central, into the user's cache folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from k2.errors import BrokerUnavailable

__all__ = ["KAFKA_VERSION", "cache", "fetch", "missing", "tool"]

KAFKA_VERSION = "4.4.0"
#: The logging that Kafka's own distribution adds to the jars its artifact names.
LOG4J_VERSION = "2.25.5"
DEPENDENCY_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
FETCH_TIMEOUT_S = 600.0
TAIL_CHARS = 2000

_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>k2</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>{kafka}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
      <version>{log4j}</version>
    </dependency>
  </dependencies>
</project>
"""


def missing() -> str:
    """Say what this machine lacks to run Kafka; empty when nothing does."""
    lacking = [] if shutil.which("java") else ["java (17 or newer)"]
    if not cache().is_dir() and not shutil.which("mvn"):
        lacking.append("mvn (Maven, which fetches Kafka's jars)")
    return f"not on PATH: {', '.join(lacking)}" if lacking else ""


def tool(name: str) -> str:
    """Return the path of a program.

    Raises:
        BrokerUnavailable: it is not on PATH.
    """
    if (found := shutil.which(name)) is None:
        raise BrokerUnavailable(f"Kafka needs `{name}`, which is not on PATH")
    return found


def cache() -> Path:
    """Return the folder of the jars, which may not exist yet."""
    top = os.environ.get("XDG_CACHE_HOME", "")
    # As its specification has it: a relative path there is to be ignored.
    folder = Path(top) if os.path.isabs(top) else Path.home() / ".cache"
    return folder / "k2" / f"kafka-{KAFKA_VERSION}"


def fetch(tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> Path:
    """Return the folder of the jars; the first time, let Maven download them (about 45 MB).

    Raises:
        BrokerUnavailable: `mvn` is missing, or failed; ends with what it said.
    """
    folder = cache()
    if folder.is_dir():
        return folder
    maven = tool("mvn")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Whoever comes second waits for the first one's download instead of making another.
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        tell(f"k2: fetching Kafka {KAFKA_VERSION} from Maven Central, once, into {folder} ...")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.part-") as part:
            _copy_jars(maven, Path(part))
            # By one rename: a folder that exists is complete.
            os.rename(Path(part) / "jars", folder)
        tell(f"k2: Kafka {KAFKA_VERSION}: {len(list(folder.iterdir()))} jars")
    return folder


def _copy_jars(maven: str, part: Path) -> None:
    pom = part / "pom.xml"
    pom.write_text(_POM.format(kafka=KAFKA_VERSION, log4j=LOG4J_VERSION))
    argv = [
        maven, "-B", "-q", "-f", str(pom), f"{DEPENDENCY_PLUGIN}:copy-dependencies",
        f"-DoutputDirectory={part / 'jars'}", "-DincludeScope=runtime",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise BrokerUnavailable(f"Kafka's jars: mvn took more than {FETCH_TIMEOUT_S:g} s") from exc
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-TAIL_CHARS:]
        raise BrokerUnavailable(f"Kafka's jars: mvn failed ({done.returncode}):\n{said}")
