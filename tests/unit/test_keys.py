"""API keys: made, proven, expired, revoked, read again; and the commands that do it."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from k2 import keys as k2_keys
from k2.cli import cli
from k2.errors import SettingError, Unauthorized
from k2.keyfile import Key, create, read, revoke
from k2.keys import Keyring, is_loopback, require_keys, same_secret
from k2.settings import Settings

NOW = dt.datetime(2026, 3, 10, tzinfo=dt.UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.ndjson"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(path: Path, *scopes: str, expires: dt.datetime | None = None) -> tuple[Key, str]:
    return create(path, scopes or ("read",), expires, "")


def test_a_key_is_found_by_its_text_and_by_no_other(path: Path) -> None:
    (one, text), (two, other) = made(path, "read", "sql"), made(path, "admin")
    ring = Keyring(path)
    assert ring.find(text) == one
    assert ring.find(other).scopes == {"admin"}
    flipped = text[:-1] + ("0" if text[-1] != "0" else "1")
    swapped = f"k2_{two.id}_{text[12:]}"
    nobody = f"k2_{'0' * 8}_{text[12:]}"
    for wrong in ("", flipped, swapped, nobody, text[:-1], text + "0", one.hash, text.upper()):
        with pytest.raises(Unauthorized, match="unknown, or was revoked"):
            ring.find(wrong)


def test_the_file_has_no_secret_and_only_its_owner_may_read_it(path: Path) -> None:
    os.umask(os.umask(0))  # whatever it is
    key, text = made(path, "sql", "read")
    secret = text.split("_")[2]
    assert len(bytes.fromhex(secret)) == 32
    (line,) = path.read_text().splitlines()
    assert secret not in line
    assert json.loads(line) == {
        "id": key.id,
        "hash": key.hash,
        "scopes": ["read", "sql"],
        "created": f"{key.created:%Y-%m-%dT%H:%M:%SZ}",
        "expires": None,
        "note": "",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*read(path)] == [key]


def test_secrets_are_compared_in_constant_time_by_their_digests(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look-up ends in one comparison of two digests, also where no key has the id."""
    key, text = made(path)
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("k2.keys.hmac.compare_digest", compare)
    ring = Keyring(path)
    ring.find(text)
    for wrong in ("", "k2_00000000_" + "0" * 64):
        with pytest.raises(Unauthorized):
            ring.find(wrong)
    assert not same_secret("short", "a longer one")
    assert compared[0] == (key.hash, key.hash)
    assert len(compared) == 4
    assert {len(digest) for pair in compared for digest in pair} == {64}


def test_a_key_is_good_until_it_expires(path: Path) -> None:
    now = NOW
    _, text = made(path, expires=NOW + dt.timedelta(seconds=1))
    ring = Keyring(path, now=lambda: now)
    assert len(ring.good()) == 1
    ring.find(text)
    now += dt.timedelta(seconds=1)
    assert ring.good() == []
    with pytest.raises(Unauthorized, match="expired at 2026-03-10T00:00:01Z"):
        ring.find(text)


def test_changes_are_read_within_a_second_and_looked_for_once_in_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    ring = Keyring(path, clock)
    assert not ring.needed
    key, text = made(path)
    looks = []
    stamp = k2_keys._stamp
    monkeypatch.setattr(k2_keys, "_stamp", lambda path: looks.append(1) or stamp(path))
    for _ in range(100):
        assert not ring.needed
    assert looks == []
    clock.now += 1.0
    assert ring.needed
    assert ring.find(text) == key
    assert looks == [1]
    assert revoke(path, [key.id]) == 0
    clock.now += 1.0
    with pytest.raises(Unauthorized):
        ring.find(text)
    assert ring.needed


def test_a_file_that_is_removed_lets_nobody_in(path: Path) -> None:
    """To remove the keys is no way to need none: a worker that had some stays closed."""
    clock = Clock()
    _, text = made(path)
    ring = Keyring(path, clock)
    ring.find(text)
    path.unlink()
    clock.now += 1.0
    assert ring.needed
    with pytest.raises(Unauthorized):
        ring.find(text)


GOOD = {
    "id": "0" * 8,
    "hash": "0" * 64,
    "scopes": ["read"],
    "created": "2026-03-10T00:00:00Z",
    "expires": None,
    "note": "",
}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        json.dumps({**GOOD, "scopes": ["write"]}),
        json.dumps({**GOOD, "scopes": "read"}),
        json.dumps({**GOOD, "id": "x"}),
        json.dumps({**GOOD, "hash": "0" * 63}),
        json.dumps({**GOOD, "created": "2026-03-10T00:00:00"}),
        json.dumps({**GOOD, "expires": "soon"}),
        json.dumps({k: v for k, v in GOOD.items() if k != "expires"}),
    ],
)
def test_a_damaged_line_is_named(path: Path, line: str) -> None:
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(SettingError, match=r"keys\.ndjson: line 3 is no key"):
        Keyring(path)


def test_one_id_twice_and_a_folder_are_damage(path: Path) -> None:
    path.write_text(f"{json.dumps(GOOD)}\n" * 2)
    with pytest.raises(SettingError, match="an id is there twice"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(SettingError, match=r"keys_file: .*directory"):
        read(path)
    with pytest.raises(SettingError, match=r"keys_file: .*directory"):
        made(path)


def test_a_damaged_file_keeps_the_last_good_keys_and_says_so_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    clock = Clock()
    key, text = made(path)
    ring = Keyring(path, clock)
    path.write_text("{")
    for _ in range(3):
        clock.now += 1.0
        assert ring.find(text) == key
    (said,) = caplog.messages
    assert "line 1 is no key" in said
    assert "the 1 keys read before stay good" in said
    path.unlink()
    _, new = made(path)
    clock.now += 1.0
    ring.find(new)
    with pytest.raises(Unauthorized):
        ring.find(text)


def test_keys_made_at_once_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        created = [*threads.map(lambda _: made(path)[0], range(40))]
    assert sorted(key.id for key in read(path)) == sorted(key.id for key in created)
    assert len({key.id for key in created}) == 40


def test_revoking_a_key_that_is_not_there_revokes_none(path: Path) -> None:
    key, _ = made(path)
    with pytest.raises(SettingError, match="no key has the id ffffffff, no"):
        revoke(path, [key.id, "no", "ffffffff"])
    assert read(path) == [key]


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True),
        ("localhost", True), ("LOCALHOST", True), ("0.0.0.0", False), ("::", False),
        ("10.0.0.1", False), ("k2-1.lan", False), ("", False), ("localhost.evil.example", False),
    ],
)  # fmt: skip
def test_only_loopback_addresses_are_loopback(address: str, local: bool) -> None:
    assert is_loopback(address) is local


def test_worker_that_anybody_could_ask_is_refused(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, bind="0.0.0.0")
    require_keys(settings, "127.0.0.1")
    refusal = r"bind: 0\.0\.0\.0 is no loopback address and .*keys\.ndjson.*`k2 keys create"
    with pytest.raises(SettingError, match=refusal):
        require_keys(settings, settings.bind)
    made(settings.keys_path, expires=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1))
    with pytest.raises(SettingError, match=refusal):
        require_keys(settings, settings.bind)
    made(settings.keys_path)
    require_keys(settings, settings.bind)
    settings.keys_path.write_text("{")
    with pytest.raises(SettingError, match="line 1"):
        require_keys(settings, "127.0.0.1")
    elsewhere = Settings(data=tmp_path, keys_file=str(tmp_path / "no"))
    with pytest.raises(SettingError, match=r"keys_file: .*no is no file: `k2 keys create`"):
        require_keys(elsewhere, "127.0.0.1")


def command(data: Path, *arguments: str, **more: Any) -> Result:
    return CliRunner().invoke(cli, ["keys", *arguments], env={"K2_DATA": str(data)}, **more)


def test_commands_make_show_and_revoke(tmp_path: Path) -> None:
    data = tmp_path / "new"
    done = command(data, "create", "--scope", "sql", "--scope", "read", "--note", "the [lab]")
    assert done.exit_code == 0, done.output
    text = done.stdout.strip()
    ring = Keyring(data / "keys.ndjson")
    key = ring.find(text)
    assert (key.scopes, key.note) == ({"read", "sql"}, "the [lab]")
    assert f"key {key.id} (read,sql) never expires" in done.stderr
    assert text not in done.stderr

    soon = command(data, "create", "--expires", "12h")
    until = Keyring(data / "keys.ndjson").find(soon.stdout.strip()).expires
    assert until is not None
    left = until - dt.datetime.now(dt.UTC)
    assert dt.timedelta(hours=11.9) < left < dt.timedelta(hours=12.1)

    shown = command(data, "list")
    assert key.id in shown.stdout
    assert "the [lab]" in shown.stdout
    assert "never" in shown.stdout
    assert key.hash not in shown.output
    first, second = map(json.loads, command(data, "list", "--json").stdout.splitlines())
    assert (first["scopes"], first["expired"], first["expires"]) == (["read", "sql"], False, None)
    assert second["expires"] == f"{until:%Y-%m-%dT%H:%M:%SZ}"

    gone = command(data, "revoke", key.id)
    assert (gone.exit_code, gone.stdout.split()) == (0, [key.id])
    last = command(data, "revoke", second["id"])
    assert "nobody is let in" in last.stderr
    assert "no keys in" in command(data, "list").stderr


@pytest.mark.parametrize("expires", ["0d", "1h ago", "2001-01-01", "999999d", "5w"])
def test_impossible_expiry_is_refused_and_makes_no_key(tmp_path: Path, expires: str) -> None:
    done = command(tmp_path, "create", "--expires", expires)
    assert done.exit_code == 2
    assert "expires" in done.stderr
    assert read(tmp_path / "keys.ndjson") == []


def test_an_expired_key_is_shown_as_such(tmp_path: Path) -> None:
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    made(tmp_path / "keys.ndjson", expires=past)
    assert f"{past:%Y-%m-%dT%H:%M:%SZ} expired" in command(tmp_path, "list").stdout
    (line,) = command(tmp_path, "list", "--json").stdout.splitlines()
    assert json.loads(line)["expired"] is True
