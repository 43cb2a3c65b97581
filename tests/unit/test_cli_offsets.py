"""`k2 offsets` without a broker: what can be said and done then, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest
from click.testing import CliRunner, Result
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from test_lake_audit import A, B, Lake, found, trade

from k2.cli import cli
from k2.cli.offsets import _verdict as verdict_of
from k2.lake.offsets import Source, Topic, anew
from k2.logs import Log
from k2.schemas import TRADES
from k2.settings import Settings
from k2.topics import topic_ids

if TYPE_CHECKING:
    from conftest import Broker

DEAD = "127.0.0.1:1"
WHY = ("--reason", "gone")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lake = Lake(tmp_path)
    lake.add([trade(0), trade(0, B)], {A: 1, B: 1})
    lake.catalog.close()
    return tmp_path


def k2(data: Path, *arguments: str) -> Result:
    return CliRunner(env={"K2_DATA": str(data), "K2_BROKER": DEAD}).invoke(
        cli, ["offsets", *arguments]
    )


def test_show_names_what_is_stored_and_that_no_log_was_asked(data: Path) -> None:
    """Exit code 0: nothing is known to be wrong."""
    result = k2(data, "show", "--json")
    rows = [orjson.loads(line) for line in result.stdout.splitlines()]
    assert [(row["partition"], row["next_offset"], row["rejects"]) for row in rows] == [
        (0, 1, None),
        (1, 1, None),
    ]
    assert {row["verdict"] for row in rows} == {"broker not asked"}
    assert (result.exit_code, "no Kafka broker answers" in result.stderr) == (0, True)
    assert A.topic in k2(data, "show").stdout


def test_forget_does_nothing_without_yes(data: Path) -> None:
    """And then names the reason in every later `show`."""
    result = k2(data, "forget", "--cluster", A.cluster, *WHY)
    assert (result.exit_code, result.stdout.count("-> none")) == (0, 2)
    assert "nothing done: --yes does it" in result.stderr
    assert k2(data, "show", "--json").stdout.count("\n") == 2
    assert "done" in k2(data, "forget", "--cluster", A.cluster, *WHY, "--yes").stdout
    shown = k2(data, "show")
    assert "no offsets yet" in shown.stderr
    assert shown.stderr.count("forgotten by ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("move", A.topic, "0", "--to", "end", *WHY), "the log's bounds"),
        (("accept", A.topic, *WHY), "the topic's id is needed"),
        (("forget", "--cluster", "x", *WHY), "cluster: x: no offsets"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    data: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Exit code 2."""
    result = k2(data, *arguments)
    assert result.exit_code == 2
    assert f"k2: {message}" in result.stderr


@pytest.mark.slow
def test_a_topic_is_accepted_also_where_the_tables_know_no_id(
    broker: Broker, tmp_path: Path
) -> None:
    """They are from before K2 carried ids; a topic that nobody has read is not made anew."""
    admin = AdminClient({"bootstrap.servers": broker.address, "log_level": 0})
    for name in ("market.trades.accepted", "market.trades.unread"):
        admin.create_topics([NewTopic(name, 2, 1)])[name].result(10)
    (number,) = topic_ids(Settings(broker=broker.address), ["market.trades.accepted"]).values()
    old = Source(broker.cluster_id, "market.trades.accepted", 0)
    lake = Lake(tmp_path)
    lake.add([trade(0, old), trade(1, old)], {old: 2})

    def accept(topic: str, *more: str) -> Result:
        arguments = ["offsets", "accept", topic, *WHY, *more]
        env = {"K2_DATA": str(tmp_path), "K2_BROKER": broker.address}
        return CliRunner(env=env).invoke(cli, arguments)

    assert "no such topic" in accept("nope").stderr
    assert "was not made anew" in accept("market.trades.unread", "--yes").stderr
    done = accept("market.trades.accepted")
    assert f"market.trades.accepted: id unknown -> {number}" in done.stdout
    assert (done.exit_code, "nothing done" in done.stderr) == (0, True)
    assert lake.sinks[TRADES.table].carried().topics == {}
    assert accept("market.trades.accepted", "--yes").stdout.endswith("done\n")
    name = anew(broker.cluster_id, number)
    carried = lake.sinks[TRADES.table].carried()
    assert (carried.offsets, carried.topics) == (
        {old: 2},
        {Topic(name, "market.trades.accepted"): number},
    )
    begun = [(move.source, move.after) for move in carried.moves]
    assert begun == [(Source(name, "market.trades.accepted", partition), 0) for partition in (0, 1)]
    assert "was not made anew" in accept("market.trades.accepted", "--yes").stderr
    assert found(lake.audit()) == []
    lake.catalog.close()


class Asked:
    """All that a verdict wants of the logs: topics with one partition, kept under these."""

    cluster = A.cluster

    def partitions(self, topic: str) -> list[int]:
        return [0] if topic in (A.topic, "anew") else []

    def kept_under(self, topic: str) -> str | None:
        return f"{A.cluster}/y" if topic == A.topic else None


@pytest.mark.parametrize(
    ("following", "log", "verdict"),
    [
        (5, Log(5, 9), "ok"),
        (9, Log(0, 9), "ok"),
        (None, Log(7, 9), "ok"),
        (4, Log(5, 9), "log starts above: lost by retention"),
        (10, Log(0, 9), "log ends below: truncated or recreated"),
    ],
)
def test_the_verdict_compares_the_next_offset_with_the_log(
    following: int | None, log: Log | None, verdict: str
) -> None:
    """The end is the next offset to come: to be there is to have all."""
    assert verdict_of(A, following, Asked(), log) == verdict


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        (A, "former topic"),
        (Source(f"{A.cluster}/x", A.topic, 0), "former topic"),
        (Source(A.cluster, "anew", 0), "topic made anew: another id"),
        (Source(A.cluster, "gone", 0), "no such topic"),
        (Source(f"{A.cluster}/x", "gone", 0), "no such topic"),
        (B, "no such topic"),
        (Source("other", A.topic, 0), "other cluster"),
        (Source(f"{A.cluster}x", A.topic, 0), "other cluster"),
    ],
)
def test_the_verdict_says_why_there_is_no_log(source: Source, verdict: str) -> None:
    """A topic that was made anew is not the one of its name."""
    assert verdict_of(source, 5, Asked(), None) == verdict


@pytest.mark.parametrize("command", ["show", "move", "accept", "forget"])
def test_the_help_has_an_example(command: str) -> None:
    """The help is the documentation."""
    result = CliRunner().invoke(cli, ["offsets", command, "--help"])
    assert f"\n  k2 offsets {command}" in result.stdout
