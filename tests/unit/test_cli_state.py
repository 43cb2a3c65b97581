"""`k2 state` against a real broker, with states that were written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from k2.tables.epochs import key, mark
from k2.tables.segments import Segments
from test_lake_audit import Lake, trade

from k2.changelog import Changelog
from k2.cli import cli
from k2.lake.offsets import Source
from k2.lake.states import count
from k2.schemas import TRADES
from k2.sequence import Chain, Gap, Memory, SymbolState
from k2.settings import Settings

if TYPE_CHECKING:
    from conftest import Broker

PARTITIONS = 9


class Stage:
    """A topic of trades with ten records a partition, tables, and a changelog of its own."""

    def __init__(self, broker: Broker, data: Path, name: str) -> None:
        self.lake, self.topic, self.cluster = Lake(data), f"market.trades.{name}", broker.cluster_id
        self.env = {"K2_DATA": str(data), "K2_BROKER": broker.address, "K2_GROUP": self.topic}
        self.changelog = Changelog(Settings(broker=broker.address, group=self.topic))
        admin = AdminClient({"bootstrap.servers": broker.address, "log_level": 0})
        for topic in (self.topic, self.changelog.topic):
            admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(10)
        producer = Producer({"bootstrap.servers": broker.address, "log_level": 0})
        for partition in range(PARTITIONS):
            for number in range(10):
                producer.produce(self.topic, b"%d" % number, partition=partition)
        assert producer.flush(30) == 0

    def source(self, partition: int) -> Source:
        return Source(self.cluster, self.topic, partition)

    def commit(self, partition: int, rows: int, following: int) -> None:
        source = self.source(partition)
        self.lake.add([trade(offset, source) for offset in range(rows)], {source: following})

    def write(self, source: Source, watermark: int, *states: SymbolState, lacking: int = 0) -> None:
        """An epoch with one symbol a state, and `lacking` segments that are not there."""
        segments = Segments({("SIM", f"S{n}"): state for n, state in enumerate(states)})
        pairs = [(key(source, "3-x", *name), value) for name, value in segments.take().items()]
        pairs.append((key(source, "3-x"), mark(watermark, len(segments) + lacking)))
        self.changelog.write(source.partition, pairs)

    def k2(self, *arguments: str) -> Result:
        return CliRunner(env=self.env).invoke(cli, ["state", *arguments])

    def show(self) -> dict[int, dict[str, Any]]:
        shown = self.k2("show", "--json")
        assert (shown.exit_code, shown.stderr) == (0, "")
        rows = [orjson.loads(line) for line in shown.stdout.splitlines()]
        return {row["partition"]: row for row in rows}


def at(offset: int, *gaps: Gap, earlier: dict[int, Chain] | None = None) -> SymbolState:
    chain = Chain(1, 9, 9, 9, [*Chain.unseen_below(1), *gaps])
    return Memory(1, chain, offset, earlier=earlier or {}, gaps_found=len(gaps)).pack()


@pytest.fixture
def stage(broker: Broker, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    stage = Stage(broker, tmp_path, request.node.name)
    with closing(stage.changelog), closing(stage.lake.catalog):
        yield stage


@pytest.mark.slow
def test_show_says_what_a_worker_will_make_of_each_state(stage: Stage) -> None:
    """As `Assignment` does: by the log's bounds, the table's next offset and the watermark."""
    for partition in range(7):
        stage.commit(partition, 4, 8)
    stage.commit(7, 4, 11)
    stage.commit(8, 4, 8)
    gaps = [Gap(first, last, ((first, last),), offset=3) for first, last in ((2, 2), (4, 5))]
    earlier = {0: Chain(1, 9, 9, 9, [gaps[0]])}
    stage.write(stage.source(0), 8, at(7, *gaps, earlier=earlier), at(5))
    stage.write(stage.source(1), 5, at(4))
    stage.write(stage.source(3), 8, at(7), lacking=1)
    stage.write(stage.source(4), 9, at(7))
    stage.write(stage.source(5), 8, at(8))
    stage.write(Source("gone", stage.topic, 6), 8, at(7))
    other = key(stage.source(8), "3-x", "sequences", 16, 3), b"packed by another release"
    stage.changelog.write(8, [other, (key(stage.source(8), "3-x"), mark(8, 1))])
    shown = stage.show()
    assert {partition: row["verdict"] for partition, row in shown.items() if partition != 6} == {
        0: "ok",
        1: "behind: 3 offsets are read again",
        2: "missing: rebuilt from 4 rows",
        3: "incomplete: rebuilt from 4 rows",
        4: "ahead of the table: rebuilt from 4 rows",
        5: "ahead of the table: rebuilt from 4 rows",
        7: "the log does not reach: `k2 offsets show`",
        8: "incomplete: rebuilt from 4 rows",
    }
    assert shown[0] == {
        "cluster": stage.cluster, "topic": stage.topic, "partition": 0, "epoch": "3-x",
        "watermark": 8, "symbols": 2, "open_gaps": 3, "next_offset": 8, "verdict": "ok",
    }  # fmt: skip
    table = stage.k2("show").stdout
    assert ("its log is no longer read" in table, "3-x" in table) == (True, False)


@pytest.mark.slow
def test_rebuild_forgets_what_is_named_and_nothing_without_yes(stage: Stage) -> None:
    """The keys are deleted too; a source that is no longer read is left alone."""
    for partition in (0, 1):
        stage.commit(partition, 4, 8)
        stage.write(stage.source(partition), 8, at(7), at(6))
    stage.write(stage.source(2), 8, at(7), lacking=1)
    stage.write(Source("gone", stage.topic, 0), 8, at(7))
    before = [stage.changelog.newest([partition]) for partition in range(3)]
    dry = stage.k2("rebuild")
    assert dry.stdout.splitlines() == [
        f"{stage.source(0)}: the states of 2 symbols at 8 to be forgotten; "
        "a worker then reads 4 rows of the table",
        f"{stage.source(1)}: the states of 2 symbols at 8 to be forgotten; "
        "a worker then reads 4 rows of the table",
        f"{stage.source(2)}: an incomplete state to be forgotten; "
        "a worker then reads 0 rows of the table",
    ]
    assert (dry.exit_code, dry.stderr) == (0, "k2: nothing done: --yes does it\n")
    assert [stage.changelog.newest([partition]) for partition in range(3)] == before
    done = stage.k2("rebuild", stage.topic, "0", "--yes")
    assert (done.exit_code, done.stdout.count("\n"), done.stdout[-5:]) == (0, 2, "done\n")
    left = [orjson.loads(each)[:4] for each in stage.changelog.newest([0])]
    assert [(cluster, epoch[:2]) for cluster, _, _, epoch in left] == [
        ("gone", "3-"),
        ("gone", "3-"),
        (stage.cluster, "4-"),
    ]
    assert stage.changelog.newest([1]) == before[1]
    assert stage.show()[0]["verdict"] == "missing: rebuilt from 4 rows"
    assert stage.k2("rebuild", stage.topic, "0", "--yes").stderr.endswith("no state to forget\n")
    assert stage.k2("rebuild", stage.topic, "--yes").stdout.count("to be forgotten") == 2


@pytest.mark.slow
def test_a_topic_or_partition_that_is_not_there_is_named(stage: Stage) -> None:
    """Exit code 2."""
    for arguments, message in (
        (("nope",), f"topic: nope: no such topic at {stage.env['K2_BROKER']}"),
        ((stage.topic, "9"), f"partition: {stage.topic}[9]: the topic has 9 partitions"),
    ):
        done = stage.k2("rebuild", *arguments, "--yes")
        assert (done.exit_code, done.stderr) == (2, f"k2: {message}\n")


@pytest.mark.slow
def test_without_a_changelog_nothing_is_stored(broker: Broker, tmp_path: Path) -> None:
    """No worker of the group has run yet."""
    with closing(Lake(tmp_path).catalog):
        env = {"K2_DATA": str(tmp_path), "K2_BROKER": broker.address, "K2_GROUP": "state-none"}
        run = CliRunner(env=env).invoke
        assert run(cli, ["state", "show"]).stderr == "k2: no states yet\n"
        assert (
            run(cli, ["state", "rebuild"]).stderr
            == "k2: nothing done: there is no state to forget\n"
        )


def test_count_is_of_the_rows_of_one_source(tmp_path: Path) -> None:
    """Files hold rows of several, and reach beyond the offsets asked for."""
    lake = Lake(tmp_path)
    one, other = Source("c", "t", 0), Source("d", "t", 0)
    lake.add([trade(offset, source) for offset in range(5) for source in (one, other)], {one: 5})
    lake.add([trade(7, one)], {one: 9})
    counted = [
        count(lake.catalog, lake.settings, TRADES, one, *span) for span in ((0, 9), (2, 7), (8, 9))
    ]
    assert counted == [6, 3, 0]
    lake.catalog.close()


@pytest.mark.parametrize("command", ["show", "rebuild"])
def test_without_a_broker_it_is_one_line(tmp_path: Path, command: str) -> None:
    """Exit code 2: the states are in the broker."""
    with closing(Lake(tmp_path).catalog):
        env = {"K2_DATA": str(tmp_path), "K2_BROKER": "127.0.0.1:1"}
        done = CliRunner(env=env).invoke(cli, ["state", command])
        assert (done.exit_code, done.stderr[:39]) == (2, "k2: no Kafka broker answers at 127.0.0.")
        assert done.stdout == ""


@pytest.mark.parametrize("command", ["show", "rebuild"])
def test_the_help_has_an_example(command: str) -> None:
    """The help is the documentation."""
    result = CliRunner().invoke(cli, ["state", command, "--help"])
    assert f"\n  k2 state {command}" in result.stdout
