"""`k2 sql` without a worker."""

from pathlib import Path

import orjson
import pyarrow as pa
import pytest
from click.testing import CliRunner

from k2.cli import cli
from tests.statements import lake


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("lake"))
    catalog, _ = lake(folder)
    catalog.close()
    return folder


@pytest.fixture
def k2(folder):
    def call(*args, stdin=None):
        return CliRunner().invoke(cli, ["sql", *args], stdin, env={"K2_DATA": str(folder)})

    return call


def test_a_table_for_people_has_the_first_rows(k2):
    done = k2("SELECT symbol, price, event_time FROM trades ORDER BY ALL", "--limit", "2")
    assert done.exit_code == 0, done.output
    assert "BHP      30      2014-03-10T00:00:00.000000Z" in done.stdout
    assert "only the first 2 rows" in done.stderr


def test_json_csv_and_arrow_have_all_rows(k2):
    sql = "SELECT symbol, count(*) AS n FROM trades GROUP BY ALL ORDER BY ALL"
    assert [orjson.loads(line) for line in k2(sql, "--json").stdout.splitlines()] == [
        {"symbol": "BHP", "n": 600},
        {"symbol": "RIO", "n": 600},
    ]
    assert k2(sql, "--csv").stdout == "symbol,n\nBHP,600\nRIO,600\n"
    table = pa.ipc.open_stream(k2(sql, "--format", "arrow").stdout_bytes).read_all()
    assert table["n"].to_pylist() == [600, 600]


def test_the_statement_comes_from_a_file_or_stdin_too(k2, tmp_path):
    file = tmp_path / "a.sql"
    file.write_text("SELECT count(*) AS n FROM trades WHERE symbol = $s AND sequence < $n::INT")
    given = ("-p", "s=RIO", "-p", "n=7", "--csv")
    assert k2("-f", str(file), *given).stdout == "n\n7\n"
    assert k2(*given, stdin=file.read_text()).stdout == "n\n7\n"


def test_an_error_is_shown_at_its_place(k2):
    done = k2("SELECT symbol,\n prise FROM trades")
    assert done.exit_code == 2
    assert "line 2, column 2" in done.stderr
    assert "\n   prise FROM trades\n   ^\n" in done.stderr
    assert "prise" in done.stderr.splitlines()[-2]


@pytest.mark.parametrize(
    "args",
    [("",), ("SELECT 1", "-p", "a"), ("SELECT 1", "--json", "--csv"), ("ATTACH 'a.db'",)],
)
def test_what_cannot_be_run_says_so(k2, args):
    done = k2(*args)
    assert done.exit_code == 2
    assert done.stderr.startswith("k2: ")
