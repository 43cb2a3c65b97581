"""`k2 offsets` without a broker: what can be said and done then, and what is refused."""

from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result
from test_lake_audit import A, B, Lake, trade

from k2.cli import cli
from k2.cli.offsets import _verdict as verdict_of
from k2.lake.offsets import Source
from k2.logs import Log

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
    assert [(row["partition"], row["trades"], row["rejects"]) for row in rows] == [
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
