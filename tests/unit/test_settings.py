"""Settings: refused at start with name, value and limit."""

import pytest

from k2.errors import SettingError
from k2.settings import load


def test_environment_sets_a_setting() -> None:
    assert load({"K2_PORT": "7000", "PATH": "/bin"}).port == 7000


def test_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(SettingError, match="K2_PROT: no such setting"):
        load({"K2_PROT": "7000"})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("K2_PORT", "70000", r"K2_PORT: 70000 is outside 1\.\.65535 "),
        ("K2_PORT", "http", "K2_PORT: 'http' is not a whole number"),
        ("K2_EXCHANGES", ",", "exchanges: empty"),
        ("K2_TIMEZONES", "ASX=Nowhere/Land", "timezones: 'ASX=Nowhere/Land'"),
        ("K2_TIMEZONES", "ASX", "timezones: 'ASX'"),
        ("K2_SHUTDOWN_TIMEOUT_MS", "20000", "must be below session_timeout_ms"),
        ("K2_FETCH_BYTES_MAX", str(128 * 1024 * 1024), "must not exceed inflight_bytes_max"),
    ],
)
def test_impossible_value_is_refused_with_its_limit(
    variable: str, value: str, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        load({variable: value})


def test_override_wins_over_the_environment() -> None:
    assert load({"K2_PORT": "7000"}, port=7001).port == 7001
