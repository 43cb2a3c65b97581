"""Kafka as a process: what is missing is named, and its log outlives it."""

from __future__ import annotations

import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from k2.dev import jars
from k2.dev.kafka import Kafka
from k2.errors import BrokerUnavailable
from k2.settings import Settings
from k2.topics import check_topics, cluster_id, ensure_topics


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No program on PATH but those that the test puts into the folder; nothing in the cache."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return programs


def _program(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_missing_programs_are_named(bare: Path, tmp_path: Path) -> None:
    assert "java (17 or newer), mvn" in jars.missing()
    with pytest.raises(BrokerUnavailable, match="`java`, which is not on PATH"):
        Kafka(tmp_path).start()
    _program(bare, "java", "exit 0")
    assert "java" not in jars.missing()
    with pytest.raises(BrokerUnavailable, match="`mvn`, which is not on PATH"):
        Kafka(tmp_path).start()
    _program(bare, "mvn", "exit 0")
    assert jars.missing() == ""


def test_failed_fetch_leaves_nothing_and_says_why(bare: Path) -> None:
    """The next run fetches again, instead of taking half of the jars for all."""
    _program(bare, "mvn", "echo no route to Maven Central; exit 1")
    with pytest.raises(BrokerUnavailable, match=r"mvn failed \(1\):\nno route to Maven Central"):
        jars.fetch(lambda line: None)
    assert not jars.cache().exists()
    assert not [path for path in jars.cache().parent.iterdir() if path.is_dir()]


def test_jars_are_fetched_once(bare: Path) -> None:
    said: list[str] = []
    folder = 'for a in "$@"; do case $a in -DoutputDirectory=*) d=${a#*=};; esac; done'
    _program(bare, "mvn", f'{folder}; /bin/mkdir "$d"; : > "$d/kafka.jar"')
    assert [path.name for path in jars.fetch(said.append).iterdir()] == ["kafka.jar"]
    assert "once" in said[0]
    (bare / "mvn").unlink()
    assert jars.fetch(said.append) == jars.cache()
    assert len(said) == 2


def test_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert jars.cache().is_relative_to(Path.home() / ".cache" / "k2")


@pytest.mark.slow
@pytest.mark.skipif(
    bool(jars.missing()) and not os.environ.get("CI"), reason=f"Kafka: {jars.missing()}"
)
def test_log_and_cluster_id_outlive_a_kill_and_the_object(tmp_path: Path) -> None:
    with Kafka(tmp_path) as kafka:
        settings = Settings(data=tmp_path, broker=kafka.address, exchanges="KEPT", partitions=3)
        ensure_topics(settings)
        assert kafka.child is not None
        kafka.child.signal(signal.SIGKILL)
        kafka.child.stop(0.0)
    with Kafka(tmp_path) as again:
        check_topics(Settings(broker=again.address, exchanges="KEPT", partitions=3))
        assert cluster_id(Settings(broker=again.address)) == kafka.cluster_id == again.cluster_id


@pytest.mark.skipif(
    bool(jars.missing()) and not os.environ.get("CI"), reason=f"Kafka: {jars.missing()}"
)
def test_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BrokerUnavailable, match="in use"):
            Kafka(tmp_path, taken.getsockname()[1]).start()
