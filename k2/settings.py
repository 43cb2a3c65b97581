"""Every setting of K2, as data: one table, and the only reader of the environment.

`K2_<NAME>` in the environment sets `<name>`. An unknown `K2_` variable is refused, so that a
misspelt setting never falls back to a default in silence.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from k2.errors import SettingError

__all__ = ["EVERYWHERE", "ROLES", "Settings", "load"]

MIB = 1024 * 1024
#: Addresses to bind to, which name no host.
EVERYWHERE = ("0.0.0.0", "::")
SECURITY = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
#: What a worker is for.
ROLES = ("all", "ingest", "query")
_SILENCE_MAX_S = 7 * 86_400
_GROUP_SECRET_MIN = 16

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
#: User and password of a URI.
_USER_INFO = re.compile(r"//[^/@\s]*@")


def _setting(default: Any, unit: str, help: str, low: Any = None, high: Any = None) -> Any:
    meta = {"unit": unit, "help": help, "low": low, "high": high}
    return field(default=default, metadata=meta)


def _choice(default: str, help: str, choices: tuple[str, ...]) -> Any:
    return field(default=default, metadata={"unit": "|".join(choices), "help": help})


def _secret(help: str) -> Any:
    return field(default="", metadata={"unit": "secret", "help": help})


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """One value a setting; see each field's metadata for unit, help and bounds.

    A field of unit "secret" is never shown: `repr` has stars for it, and whoever makes a message
    of what a library said passes it through `hide`.
    """

    data: Path = _setting(
        Path("k2-data"), "folder", "Warehouse, catalog, RocksDB and logs live here."
    )
    broker: str = _setting("127.0.0.1:9092", "host:port[,...]", "Kafka bootstrap servers.")
    broker_security: str = _choice(
        "PLAINTEXT", "Kafka's security protocol, as its listener has it.", SECURITY
    )
    broker_sasl: str = _choice("PLAIN", "SASL mechanism, with SASL_*.", MECHANISMS)
    broker_user: str = _setting("", "name", "SASL user, with SASL_*.")
    broker_password: str = _secret("SASL password, with SASL_*.")
    broker_ca: str = _setting(
        "", "file", "PEM certificates to trust, with *SSL; empty: the system's."
    )
    broker_cert: str = _setting("", "file", "PEM client certificate, with *SSL.")
    broker_key: str = _setting("", "file", "PEM key of `broker_cert`, without a passphrase.")
    group: str = _setting("k2", "name", "Consumer group, and prefix of the changelog topics.")
    worker: str = _setting("0", "name", "Name of this worker: its folder for tables.")
    role: str = _choice("all", "What a worker does: ingest, answer queries, or both.", ROLES)
    peers: str = _setting(
        "",
        "URL[,...]",
        "Ingest workers that a query worker asks for what is live; one that answers is enough.",
    )
    exchanges: str = _setting("ASX,SIM", "A,B", "Exchanges that are ingested, two topics each.")
    timezones: str = _setting(
        "ASX=Australia/Sydney",
        "EXCHANGE=Zone[,...]",
        "Time zone of an exchange's trading date, if it has no calendar; else UTC.",
    )
    calendars: str = _setting(
        "ASX=XASX,SIM=24/7",
        "EXCHANGE=code[,...]",
        "Calendar of an exchange's sessions, by its code in exchange-calendars; 24/7: local dates.",
    )
    session_margin_ms: int = _setting(
        21_600_000,
        "ms",
        "Before the open and after the close a record still belongs to the session.",
        0,
        86_400_000,
    )
    auction_conditions: str = _setting(
        "SIM=OPEN_AUCTION|CLOSE_AUCTION",
        "EXCHANGE=code|code[,...]",
        "Conditions of trades made in an auction.",
    )
    off_market_conditions: str = _setting(
        "ASX=1|3|9",
        "EXCHANGE=code|code[,...]",
        "Conditions of trades made off the market and only reported to it.",
    )
    never_reset: str = _setting(
        "", "A,B", "Exchanges whose sequences never start again, not even with a new session."
    )
    sequences: str = _setting(
        "",
        "EXCHANGE=symbol|channel[,...]",
        "What a sequence counts: a symbol's records (else), or all of a partition.",
    )
    gap_limits: str = _setting(
        "",
        "EXCHANGE=page:critical[,...]",
        "A gap of fewer than `page` sequences warns, of more than `critical` is critical; "
        "else 10:100.",
    )
    on_critical: str = _setting(
        "",
        "EXCHANGE=continue|pause[,...]",
        "What follows a critical finding: nothing (else), or its partition waits for `k2 resume`.",
    )
    silence_limits: str = _setting(
        "",
        "EXCHANGE=symbol_seconds:topic_seconds[,...]",
        "Without a record for longer while the exchange is open they are silent; 0: not watched.",
    )
    partitions: int = _setting(4, "count", "Partitions of a topic that K2 creates.", 1, 1024)
    replication: int = _setting(1, "count", "Replicas of a topic that K2 creates.", 1, 16)
    registry_url: str = _setting("", "URL", "Confluent Schema Registry; empty: the file in `data`.")
    catalog_uri: str = _setting(
        "", "URI", "Iceberg catalog: http(s) is a REST one, else SQL; empty: SQLite in `data`."
    )
    catalog_credential: str = _secret("`client-id:client-secret` for a REST catalog's token.")
    catalog_oauth_url: str = _setting(
        "", "URL", "Where a credential gets its token; empty: `catalog_uri`/v1/oauth/tokens."
    )
    catalog_token: str = _secret("Bearer token of a REST catalog, instead of a credential.")
    warehouse: str = _setting(
        "", "URI", "Iceberg warehouse, as s3://bucket; empty: a folder in `data`."
    )
    s3_endpoint: str = _setting("", "URL", "S3 service of the warehouse; empty: Amazon's.")
    s3_region: str = _setting("", "name", "S3 region; empty: as the AWS libraries find it.")
    s3_access_key: str = _setting("", "id", "S3 access key; empty: as the AWS libraries find it.")
    s3_secret_key: str = _secret("S3 secret key, with `s3_access_key`.")
    s3_session_token: str = _secret("S3 session token of temporary keys.")
    s3_path_style: bool = _setting(
        True, "true|false", "Bucket in the path of an S3 URL; false: in its host name."
    )
    namespace: str = _setting("market", "name", "Iceberg namespace of K2's tables.")
    port: int = _setting(6066, "port", "The web views' port.", 1, 65535)
    bind: str = _setting("127.0.0.1", "address", "The web views' address.")
    advertise: str = _setting(
        "",
        "URL",
        "Where the other workers reach this one; empty: `bind`, or the host's name where that is "
        "every address.",
    )
    keys_file: str = _setting("", "file", "API keys; empty: keys.ndjson in `data`.")
    api_key: str = _secret("API key that commands send to a worker.")
    group_secret: str = _secret("By which workers know each other where API keys are needed.")
    cors_origins: str = _setting(
        "", "https://host[:port][,...]", "Pages that browsers let ask; empty: none."
    )
    key_rate_max: int = _setting(50, "requests/s", "Requests of one API key.", 1, 1_000_000)
    key_burst_max: int = _setting(
        100, "requests", "At once, by a key that asked nothing before.", 1, 1_000_000
    )
    key_concurrency_max: int = _setting(
        16, "requests", "Of one API key that are not answered to their end.", 1, 100_000
    )
    header_bytes_max: int = _setting(
        8192, "bytes", "Of a request's first line, and of each header.", 1024, MIB
    )
    body_bytes_max: int = _setting(MIB, "bytes", "Of a request's body.", 64 * 1024, 256 * MIB)
    body_timeout_ms: int = _setting(
        10_000, "ms", "A request's body that is not there by then is refused.", 100, 3_600_000
    )
    idle_timeout_ms: int = _setting(
        30_000, "ms", "A connection that makes no whole request is closed.", 100, 3_600_000
    )
    answer_timeout_ms: int = _setting(
        60_000, "ms", "An answer that has not begun by then is given up.", 100, 3_600_000
    )
    reader_timeout_ms: int = _setting(
        30_000, "ms", "A client that takes nothing of its answer is dropped.", 1000, 3_600_000
    )
    fetch_bytes_max: int = _setting(
        8 * MIB, "bytes", "Fetched from one partition at once: one event.", 64 * 1024, 256 * MIB
    )
    inflight_bytes_max: int = _setting(
        64 * MIB, "bytes", "Fetched and not yet decoded, over all partitions.", MIB, 16384 * MIB
    )
    decode_threads: int = _setting(2, "count", "Threads that decode batches.", 1, 64)
    buffer_rows_max: int = _setting(1_000_000, "rows", "Rows that force a flush.", 1, 100_000_000)
    buffer_bytes_max: int = _setting(
        256 * MIB, "bytes", "Buffered rows, Arrow size; full: fetching waits.", MIB, 65536 * MIB
    )
    flush_age_max_ms: int = _setting(
        1000, "ms", "Oldest buffered row that forces a flush.", 10, 3_600_000
    )
    commit_timeout_ms: int = _setting(
        30_000, "ms", "A commit is retried this long before the worker gives up.", 100, 3_600_000
    )
    lake_timeout_ms: int = _setting(
        10_000, "ms", "Silence of a REST catalog or of S3 that ends a request.", 1000, 600_000
    )
    snapshots_keep: int = _setting(20, "count", "Newest snapshots that expiry keeps.", 1, 100_000)
    snapshots_expire_every: int = _setting(
        10, "commits", "Commits between two expiries.", 1, 100_000
    )
    snapshot_age_min_ms: int = _setting(
        10_000, "ms", "Snapshots younger than this are kept.", 0, 31_536_000_000
    )
    orphan_age_min_ms: int = _setting(
        3_600_000,
        "ms",
        "Files that no snapshot names are orphans when older; a commit may be in flight.",
        0,
        31_536_000_000,
    )
    reset_window_ms: int = _setting(
        60_000, "ms", "Pause after which a fall of the sequence by half is a reset.", 0, 86_400_000
    )
    gaps_open_max: int = _setting(1000, "count", "Open gaps remembered per symbol.", 1, 1_000_000)
    session_timeout_ms: int = _setting(
        20_000, "ms", "Kafka session timeout; a silent worker loses its partitions.", 6_000, 300_000
    )
    shutdown_timeout_ms: int = _setting(
        15_000, "ms", "Flush deadline at shutdown and at revocation.", 100, 300_000
    )
    query_rows_max: int = _setting(
        10_000_000, "rows", "Largest `limit` of a query.", 1, 1_000_000_000
    )
    query_memory_max: int = _setting(1024 * MIB, "bytes", "DuckDB's memory.", 64 * MIB, 65536 * MIB)
    sql_processes: int = _setting(2, "count", "Processes that run SQL, one statement each.", 1, 64)
    sql_timeout_ms: int = _setting(
        30_000, "ms", "A statement that takes longer is stopped.", 100, 3_600_000
    )
    sql_memory_max: int = _setting(
        512 * MIB, "bytes", "DuckDB's memory for one statement.", 64 * MIB, 65536 * MIB
    )
    sql_rows_max: int = _setting(
        1_000_000, "rows", "Rows of a statement's answer; more are cut off.", 1, 1_000_000_000
    )
    sql_bytes_max: int = _setting(
        256 * MIB,
        "bytes",
        "Arrow size of a statement's answer, and what it may spill.",
        MIB,
        65536 * MIB,
    )
    replays_max: int = _setting(8, "count", "Replays of a worker at once.", 1, 1000)
    replay_reader_timeout_ms: int = _setting(
        600_000, "ms", "A client that takes nothing of its replay is dropped.", 1000, 86_400_000
    )

    def __post_init__(self) -> None:
        for spec in fields(self):
            value, unit = getattr(self, spec.name), spec.metadata["unit"]
            low, high = spec.metadata.get("low"), spec.metadata.get("high")
            if low is not None and not low <= value <= high:
                raise SettingError(
                    f"K2_{spec.name.upper()}: {value} is outside {low}..{high} (in {unit})"
                )
        if self.shutdown_timeout_ms >= self.session_timeout_ms:
            raise SettingError(
                f"shutdown_timeout_ms: {self.shutdown_timeout_ms} must be below "
                f"session_timeout_ms ({self.session_timeout_ms}), else a flush outlives the lease"
            )
        if self.sql_timeout_ms >= self.answer_timeout_ms:
            raise SettingError(
                f"sql_timeout_ms: {self.sql_timeout_ms} must be below answer_timeout_ms "
                f"({self.answer_timeout_ms}): an answer of SQL begins when it is complete"
            )
        if self.fetch_bytes_max > self.inflight_bytes_max:
            raise SettingError(
                f"fetch_bytes_max: {self.fetch_bytes_max} must not exceed "
                f"inflight_bytes_max ({self.inflight_bytes_max})"
            )
        _ = self.exchange_names, self.exchange_zones, self.exchange_calendars
        _ = self.exchanges_by_channel, self.exchange_gap_limits, self.url
        _ = self.exchanges_pausing, self.exchange_silence_limits
        _ = self.origins, self.peer_urls
        _one_of("role", self.role, ROLES)
        if self.group_secret and len(self.group_secret) < _GROUP_SECRET_MIN:
            raise SettingError(f"group_secret: shorter than {_GROUP_SECRET_MIN} characters")
        _ = self.exchange_auction_conditions, self.exchange_off_market_conditions
        self._check_broker()
        self._check_lake()

    def _check_broker(self) -> None:
        _one_of("broker_security", self.broker_security, SECURITY)
        _one_of("broker_sasl", self.broker_sasl, MECHANISMS)
        security = f"broker_security ({self.broker_security})"
        if self.uses_sasl and not (self.broker_user and self.broker_password):
            raise SettingError(f"{security} needs broker_user and broker_password")
        if not self.uses_sasl and (self.broker_user or self.broker_password):
            raise SettingError(f"broker_user, broker_password: not used by {security}")
        for name in ("broker_ca", "broker_cert", "broker_key"):
            if file := getattr(self, name):
                if not self.uses_tls:
                    raise SettingError(f"{name}: {file} is not used by {security}")
                if not Path(file).is_file():
                    raise SettingError(f"{name}: {file} is no file")
        if bool(self.broker_cert) != bool(self.broker_key):
            raise SettingError("broker_cert, broker_key: both or neither")

    def _check_lake(self) -> None:
        if self.uses_rest and not self.warehouse:
            raise SettingError("warehouse: empty; a REST catalog wants its name, as s3://bucket")
        if not self.uses_rest and (self.catalog_credential or self.catalog_token):
            raise SettingError(
                "catalog_credential, catalog_token: only for a catalog_uri of http or https"
            )
        if self.catalog_credential and self.catalog_token:
            raise SettingError("catalog_credential, catalog_token: one of both")
        if self.catalog_oauth_url and not self.catalog_credential:
            raise SettingError(
                f"catalog_oauth_url: {self.catalog_oauth_url} "
                "is not used without catalog_credential"
            )
        if self.catalog_credential and ":" not in self.catalog_credential:
            raise SettingError("catalog_credential: not of the form client-id:client-secret")
        if bool(self.s3_access_key) != bool(self.s3_secret_key):
            raise SettingError("s3_access_key, s3_secret_key: both or neither")
        if self.s3_session_token and not self.s3_access_key:
            raise SettingError("s3_session_token: needs s3_access_key and s3_secret_key")
        if self.s3_endpoint and not self.s3_region:
            # PyArrow would ask Amazon for the region of a bucket that is not Amazon's.
            raise SettingError(f"s3_region: empty, but s3_endpoint is {self.s3_endpoint}")
        if self.s3_endpoint and not self.warehouse.startswith("s3"):
            raise SettingError(
                f"s3_endpoint: {self.s3_endpoint}, but the warehouse is "
                f"{self.warehouse or 'a folder'}, not s3://"
            )

    def __repr__(self) -> str:
        shown = (f"{spec.name}={self._shown(spec.name)}" for spec in fields(self))
        return f"Settings({', '.join(shown)})"

    def _shown(self, name: str) -> str:
        value = getattr(self, name)
        if name in _SECRETS:
            return "'***'" if value else "''"
        return _USER_INFO.sub("//***@", repr(value))

    def hide(self, text: str) -> str:
        """Return `text` with stars for every secret value in it, and for users of URIs."""
        for name in _SECRETS:
            for secret in (value := getattr(self, name), value.partition(":")[2]):
                if secret:
                    text = text.replace(secret, "***")
        return _USER_INFO.sub("//***@", text)

    @property
    def uses_sasl(self) -> bool:
        return self.broker_security.startswith("SASL")

    @property
    def uses_tls(self) -> bool:
        return self.broker_security.endswith("SSL")

    @property
    def uses_rest(self) -> bool:
        return self.catalog_uri.startswith(("http://", "https://"))

    @property
    def url(self) -> str:
        """Where the other workers reach this one."""
        if not self.advertise:
            host = socket.gethostname() if self.bind in EVERYWHERE else self.bind
            return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        return _worker_url("advertise", self.advertise)

    @property
    def peer_urls(self) -> tuple[str, ...]:
        """The URLs of `peers`, each once."""
        named = filter(None, (text.strip() for text in self.peers.split(",")))
        return tuple(dict.fromkeys(_worker_url("peers", text) for text in named))

    @property
    def keys_path(self) -> Path:
        """Where the API keys are."""
        return Path(self.keys_file) if self.keys_file else self.data / "keys.ndjson"

    @property
    def origins(self) -> frozenset[str]:
        """The origins of `cors_origins`, as browsers write them."""
        named = [name.strip().lower() for name in self.cors_origins.split(",") if name.strip()]
        for name in named:
            if not _ORIGIN.fullmatch(name):
                raise SettingError(f"cors_origins: {name!r} is not http(s)://host[:port]")
        return frozenset(named)

    @property
    def exchange_names(self) -> tuple[str, ...]:
        names = tuple(name.strip() for name in self.exchanges.split(",") if name.strip())
        if not names:
            raise SettingError("exchanges: empty; name at least one exchange")
        return names

    @property
    def exchange_zones(self) -> dict[str, str]:
        zones = dict(self._pairs("timezones", "Zone"))
        for exchange, zone in zones.items():
            try:
                ZoneInfo(zone)
            except (ZoneInfoNotFoundError, ValueError) as exc:
                raise SettingError(f"timezones: '{exchange}={zone}' is not EXCHANGE=Zone") from exc
        return zones

    @property
    def exchange_calendars(self) -> dict[str, str]:
        return dict(self._pairs("calendars", "code"))

    @property
    def exchange_auction_conditions(self) -> dict[str, list[str]]:
        return self._codes("auction_conditions")

    @property
    def exchange_off_market_conditions(self) -> dict[str, list[str]]:
        return self._codes("off_market_conditions")

    @property
    def exchanges_never_reset(self) -> frozenset[str]:
        return frozenset(filter(None, (name.strip() for name in self.never_reset.split(","))))

    @property
    def exchanges_by_channel(self) -> frozenset[str]:
        kinds = dict(self._pairs("sequences", "symbol|channel"))
        for exchange, kind in kinds.items():
            if kind not in ("symbol", "channel"):
                raise SettingError(f"sequences: '{exchange}={kind}' is neither symbol nor channel")
        return frozenset(exchange for exchange, kind in kinds.items() if kind == "channel")

    @property
    def exchange_gap_limits(self) -> dict[str, tuple[int, int]]:
        limits = {}
        for exchange, text in self._pairs("gap_limits", "page:critical"):
            page, colon, critical = text.partition(":")
            if not (colon and page.isdecimal() and critical.isdecimal()):
                raise SettingError(f"gap_limits: '{exchange}={text}' is not EXCHANGE=page:critical")
            limits[exchange] = int(page), int(critical)
            if not 1 <= int(page) <= int(critical):
                raise SettingError(f"gap_limits: '{exchange}={text}': not 1 <= page <= critical")
        return limits

    @property
    def exchanges_pausing(self) -> frozenset[str]:
        """Whose critical findings make their partition wait.

        Like all rules of the sequence check it goes by the exchange that a record names, which may
        be another one than its topic's: so no name is refused here, not even a misspelt one.
        """
        policies = dict(self._pairs("on_critical", "continue|pause"))
        for exchange, policy in policies.items():
            _one_of(f"on_critical of {exchange}", policy, ("continue", "pause"))
        return frozenset(exchange for exchange, policy in policies.items() if policy == "pause")

    @property
    def exchange_silence_limits(self) -> dict[str, tuple[int, int]]:
        """Seconds for a symbol and for a topic, where one of both is watched.

        An exchange is its topics here, so it is one of `exchanges`.
        """
        limits, form = {}, "symbol_seconds:topic_seconds"
        for exchange, text in self._pairs("silence_limits", form):
            symbol, colon, topic = text.partition(":")
            if not (colon and symbol.isdecimal() and topic.isdecimal()):
                raise SettingError(f"silence_limits: '{exchange}={text}' is not EXCHANGE={form}")
            if max(int(symbol), int(topic)) > _SILENCE_MAX_S:
                raise SettingError(
                    f"silence_limits: '{exchange}={text}': more than a week, {_SILENCE_MAX_S}"
                )
            if exchange not in self.exchange_names:
                known = ", ".join(self.exchange_names)
                raise SettingError(f"silence_limits: {exchange} is none of exchanges ({known})")
            if int(symbol) or int(topic):
                limits[exchange] = int(symbol), int(topic)
        return limits

    def _codes(self, name: str) -> dict[str, list[str]]:
        codes = {exchange: text.split("|") for exchange, text in self._pairs(name, "code|code")}
        for exchange, listed in codes.items():
            if not all(listed):
                raise SettingError(f"{name}: '{exchange}={'|'.join(listed)}' has an empty code")
        return codes

    def _pairs(self, name: str, form: str) -> Iterator[tuple[str, str]]:
        seen = set()
        for pair in filter(None, (p.strip() for p in getattr(self, name).split(","))):
            exchange, equals, value = pair.partition("=")
            if not (exchange and equals and value):
                raise SettingError(f"{name}: {pair!r} is not EXCHANGE={form}")
            if exchange in seen:
                raise SettingError(f"{name}: {exchange} twice")
            seen.add(exchange)
            yield exchange, value


_SECRETS = tuple(spec.name for spec in fields(Settings) if spec.metadata["unit"] == "secret")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingError(f"{name}: {value!r} is none of {', '.join(choices)}")


def _worker_url(name: str, text: str) -> str:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as exc:
        raise SettingError(f"{name}: {text!r} is no URL: {exc}") from exc
    bare = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    if parts.scheme not in ("http", "https") or not parts.hostname or not bare:
        raise SettingError(f"{name}: {text!r} is not http(s)://host[:port]")
    if parts.hostname in EVERYWHERE:
        raise SettingError(f"{name}: {text!r}: nobody can be reached at that")
    return text.rstrip("/")


def load(environ: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """Read the settings from `K2_*` in `environ`; `overrides` (not None) win.

    Raises:
        SettingError: a variable is unknown, or a value impossible; names both and the limit.
    """
    known = {spec.name: spec for spec in fields(Settings)}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith("K2_"):
            continue
        name = variable[3:].lower()
        if name not in known:
            all_names = ", ".join(f"K2_{each.upper()}" for each in sorted(known))
            raise SettingError(f"{variable}: no such setting; known: {all_names}")
        values[name] = _parse(variable, text, type(known[name].default))
    values.update((name, value) for name, value in overrides.items() if value is not None)
    return Settings(**values)


def _parse(variable: str, text: str, kind: type) -> Any:
    if kind is bool:
        # Also as `str` writes them, for the workers that a stack starts.
        if (value := text.strip().lower()) not in ("true", "false"):
            raise SettingError(f"{variable}: {text!r} is neither true nor false")
        return value == "true"
    try:
        return kind(text)
    except ValueError as exc:
        raise SettingError(f"{variable}: {text!r} is not a whole number") from exc
