"""Settings: refused at start with name, value and limit."""

import socket
from dataclasses import fields
from pathlib import Path

import pytest

from k2.errors import SettingError
from k2.security import client_options, ssl_context
from k2.settings import Settings, load

REST = {"catalog_uri": "http://c", "warehouse": "s3://lake"}


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
        ("K2_CALENDARS", "XASX", "calendars: 'XASX' is not EXCHANGE=code"),
        ("K2_SEQUENCES", "X=topic", "sequences: 'X=topic' is neither symbol nor channel"),
        ("K2_GAP_LIMITS", "X=10", "gap_limits: 'X=10' is not EXCHANGE=page:critical"),
        ("K2_GAP_LIMITS", "X=100:10", "gap_limits: 'X=100:10': not 1 <= page <= critical"),
        ("K2_ADVERTISE", "host:1", r"advertise: 'host:1' is not http\(s\)://host\[:port\]"),
        ("K2_ADVERTISE", "http://host:x", "advertise: 'http://host:x' is no URL"),
        ("K2_ADVERTISE", "http://host/k2", "advertise: 'http://host/k2' is not http"),
        ("K2_ADVERTISE", "http://0.0.0.0:1", "nobody can be reached at that"),
        ("K2_ROLE", "reader", "role: 'reader' is none of all, ingest, query"),
        ("K2_PEERS", "http://a:1,b:2", r"peers: 'b:2' is not http\(s\)://host\[:port\]"),
        ("K2_PEERS", "http://0.0.0.0:1", "peers: 'http://0.0.0.0:1': nobody can be reached"),
        ("K2_GROUP_SECRET", "short", "group_secret: shorter than 16 characters"),
        ("K2_CORS_ORIGINS", "*", r"cors_origins: '\*' is not http\(s\)://host\[:port\]"),
        ("K2_CORS_ORIGINS", "https://a.b,https://a.b/c", "cors_origins: 'https://a.b/c' is not"),
        ("K2_AUCTION_CONDITIONS", "X=O||C", r"auction_conditions: 'X=O\|\|C' has an empty code"),
        ("K2_OFF_MARKET_CONDITIONS", "3", r"'3' is not EXCHANGE=code\|code"),
        ("K2_ON_CRITICAL", "X=stop", "on_critical of X: 'stop' is none of continue, pause"),
        ("K2_ON_CRITICAL", "pause", r"on_critical: 'pause' is not EXCHANGE=continue\|pause"),
        ("K2_SILENCE_LIMITS", "X=10", "silence_limits: 'X=10' is not EXCHANGE=symbol_seconds:"),
        ("K2_SILENCE_LIMITS", "X=1:604801", "'X=1:604801': more than a week, 604800"),
        ("K2_SILENCE_LIMITS", "ASK=60:5", r"limits: ASK is none of exchanges \(ASX, SIM\)"),
        ("K2_SILENCE_LIMITS", "ASK=0:0", r"limits: ASK is none of exchanges \(ASX, SIM\)"),
        ("K2_SHUTDOWN_TIMEOUT_MS", "20000", "must be below session_timeout_ms"),
        ("K2_BROKER_SECURITY", "TLS", "broker_security: 'TLS' is none of PLAINTEXT, SSL"),
        ("K2_BROKER_SECURITY", "SASL_SSL", r"\(SASL_SSL\) needs broker_user and broker_password"),
        ("K2_BROKER_SASL", "GSSAPI", "broker_sasl: 'GSSAPI' is none of PLAIN, SCRAM-SHA-256"),
        ("K2_BROKER_USER", "u", r"broker_password: not used by broker_security \(PLAINTEXT\)"),
        ("K2_BROKER_CA", "/ca.pem", "broker_ca: /ca.pem is not used by"),
        ("K2_CATALOG_URI", "http://c", "warehouse: empty; a REST catalog wants its name"),
        ("K2_CATALOG_TOKEN", "t", "catalog_token: only for a catalog_uri of http or https"),
        ("K2_S3_ACCESS_KEY", "k", "s3_access_key, s3_secret_key: both or neither"),
        ("K2_S3_SESSION_TOKEN", "t", "s3_session_token: needs s3_access_key"),
        ("K2_S3_ENDPOINT", "http://s", "s3_region: empty, but s3_endpoint is http://s"),
        ("K2_S3_PATH_STYLE", "1", "K2_S3_PATH_STYLE: '1' is neither true nor false"),
        ("K2_FETCH_BYTES_MAX", str(128 * 1024 * 1024), "must not exceed inflight_bytes_max"),
        ("K2_SQL_TIMEOUT_MS", "60000", r"must be below answer_timeout_ms \(60000\)"),
    ],
)
def test_impossible_value_is_refused_with_its_limit(
    variable: str, value: str, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        load({variable: value})


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "http://127.0.0.1:6066"),
        ({"K2_BIND": "::1", "K2_PORT": "7"}, "http://[::1]:7"),
        ({"K2_BIND": "0.0.0.0"}, f"http://{socket.gethostname()}:6066"),
        ({"K2_BIND": "0.0.0.0", "K2_ADVERTISE": "https://k2-1.lan/"}, "https://k2-1.lan"),
    ],
)
def test_worker_is_reached_where_it_says(environ: dict[str, str], url: str) -> None:
    """Without a word at its address; one that is bound to all of them by the host's name."""
    assert load(environ).url == url


def test_peers_are_urls_each_once() -> None:
    named = load({"K2_PEERS": "http://a:1/, http://[::1]:2,http://a:1"}).peer_urls
    assert named == ("http://a:1", "http://[::1]:2")
    assert load({}).peer_urls == ()


def test_rules_of_an_exchange_are_read_from_pairs() -> None:
    environ = {
        "K2_EXCHANGES": "ASX,SIM,X",
        "K2_CALENDARS": "ASX=XASX, CME=CMES",
        "K2_SEQUENCES": "X=channel,ASX=symbol",
        "K2_NEVER_RESET": "X, Y",
        "K2_GAP_LIMITS": "X=1:5",
        "K2_ON_CRITICAL": "X=pause,ASX=continue",
        "K2_SILENCE_LIMITS": "X=60:5, ASX=0:0, SIM=0:9",
    }
    settings = load(environ)
    assert settings.exchange_calendars == {"ASX": "XASX", "CME": "CMES"}
    assert settings.exchanges_by_channel == {"X"}
    assert settings.exchanges_never_reset == {"X", "Y"}
    assert settings.exchange_gap_limits == {"X": (1, 5)}
    assert settings.exchanges_pausing == {"X"}
    assert settings.exchange_silence_limits == {"X": (60, 5), "SIM": (0, 9)}
    assert load({}).exchange_calendars == {"ASX": "XASX", "SIM": "24/7"}


def test_override_wins_over_the_environment() -> None:
    assert load({"K2_PORT": "7000"}, port=7001).port == 7001


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"broker_security": "SSL", "broker_ca": "/no/ca.pem"}, "broker_ca: /no/ca.pem is no file"),
        ({"broker_security": "SSL", "broker_cert": __file__}, "broker_cert, broker_key: both"),
        ({**REST, "catalog_credential": "a:b", "catalog_token": "t"}, "one of both"),
        ({**REST, "catalog_oauth_url": "http://o"}, "not used without catalog_credential"),
        ({**REST, "catalog_credential": "ab"}, "not of the form client-id:client-secret"),
        ({"s3_endpoint": "http://s", "s3_region": "r"}, "the warehouse is a folder, not s3://"),
    ],
)
def test_impossible_combination_is_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError, match=message) as refused:
        Settings(**values)  # type: ignore[arg-type]
    assert "a:b" not in str(refused.value)


def test_booleans_are_read_as_they_are_written() -> None:
    """Those that a stack hands to its workers, as `str` writes them, and those of people."""
    for text, value in (("True", True), ("False", False), ("true", True), ("false", False)):
        assert load({"K2_S3_PATH_STYLE": text}).s3_path_style is value


def test_no_secret_is_shown() -> None:
    """Neither by `repr`, nor in a message that went through `hide`."""
    values = {
        s.name: f"{s.name}-x:y1z2" for s in fields(Settings) if s.metadata["unit"] == "secret"
    }
    assert len(values) == 7
    token = values.pop("catalog_token")
    settings = Settings(
        **REST,
        **values,  # type: ignore[arg-type]
        broker_security="SASL_PLAINTEXT",
        broker_user="alice",
        s3_access_key="AK",
        registry_url="http://user:pw@registry",
    )
    assert "alice" in repr(settings)
    for secret in (*values.values(), "y1z2", "pw@"):
        assert secret not in repr(settings)
        assert secret not in settings.hide(f"at http://user:{secret}registry")
    assert token not in repr(Settings(**REST, catalog_token=token))


def test_librdkafka_is_told_what_the_settings_say() -> None:
    settings = Settings(
        broker="b:1", broker_security="SASL_SSL", broker_sasl="SCRAM-SHA-512", broker_user="u",
        broker_password="p", broker_ca=__file__,
    )  # fmt: skip
    assert client_options(settings) == {
        "bootstrap.servers": "b:1",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "u",
        "sasl.password": "p",
        "ssl.ca.location": __file__,
    }


def test_files_that_are_no_certificates_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    file.write_text("nothing")
    with pytest.raises(SettingError, match=r"broker_ca: .*x\.pem: no PEM certificates"):
        ssl_context(Settings(broker_security="SSL", broker_ca=str(file)))
    pair = {"broker_cert": str(file), "broker_key": str(file)}
    with pytest.raises(SettingError, match=r"broker_cert, broker_key: .*x\.pem"):
        ssl_context(Settings(broker_security="SSL", **pair))
    assert ssl_context(Settings()) is None
