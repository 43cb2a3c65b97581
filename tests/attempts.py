"""What somebody may try with SQL, and what comes of it: the table of attempts.

Texts may hold {secret} (a file that K2 can read), {made} (a file that there is not), {parquet} (a
data file of trades) and {port} (of a server on this machine).
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["ATTEMPTS", "Attempt"]

REFUSED, LIMITED, SHORTENED = 400, 422, 200
EITHER = (REFUSED, LIMITED)


class Attempt(NamedTuple):
    """One statement or body, and the answer's status; `says` is in the problem's detail."""

    group: str
    body: dict[str, Any] | bytes
    status: int | tuple[int, ...] = REFUSED  # which of several depends on the machine
    says: str = ""


def _sql(group: str, status: int | tuple[int, ...], says: str, *statements: str) -> list[Attempt]:
    return [Attempt(group, {"sql": sql}, status, says) for sql in statements]


def _with(sql: str, parameters: Any, status: int = REFUSED, says: str = "") -> Attempt:
    return Attempt("parameters", {"sql": sql, "parameters": parameters}, status, says)


_FROM = "not a function of a FROM clause"
_ONLY = "only a SELECT"

ATTEMPTS = [
    *_sql(
        "files", REFUSED, _FROM,
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_blob('{secret}')",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM read_json('{secret}')",
        "SELECT * FROM read_parquet('{parquet}')",
        "SELECT * FROM parquet_scan(['{parquet}'])",
        "SELECT * FROM parquet_metadata('{parquet}')",
        "SELECT * FROM parquet_kv_metadata('k2://0')",
        "SELECT * FROM read_text('k2://0')",
        "SELECT * FROM sniff_csv('{secret}')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM read_text('/proc/self/environ')",
        "SELECT * FROM READ_TEXT('{secret}')",
        "SELECT * FROM \"read_text\"('{secret}')",
        "SELECT * FROM main.read_text('{secret}')",
        "SELECT * FROM system.main.read_text('{secret}')",
        "SELECT (SELECT content FROM read_text('{secret}')) FROM trades",
        "WITH a AS (SELECT * FROM read_text('{secret}')) SELECT * FROM a",
        "SELECT * FROM trades WHERE symbol IN (SELECT content FROM read_text('{secret}'))",
        "SELECT * FROM trades, LATERAL (SELECT * FROM read_text('{secret}'))",
        "DESCRIBE SELECT * FROM read_csv('{secret}')",
        "SUMMARIZE SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM read_duckdb('{made}')",
    ),
    *_sql(
        "files as tables", REFUSED, "no table",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM '{parquet}'",
        "FROM '/etc/passwd'",
        "SELECT * FROM 'k2://0'",
        "SELECT * FROM '*.parquet'",
        "TABLE \"{secret}\"",
    ),
    *_sql(
        "http", REFUSED, "",
        "SELECT * FROM read_csv('http://127.0.0.1:{port}/a.csv')",
        "SELECT * FROM 'http://127.0.0.1:{port}/a.parquet'",
        "SELECT * FROM read_parquet('s3://bucket/a.parquet')",
        "SELECT * FROM 'https://example.com/a.csv'",
        "SELECT http_get('http://127.0.0.1:{port}/')",
    ),
    *_sql(
        "attach", REFUSED, _ONLY,
        "ATTACH '{made}'",
        "ATTACH ':memory:' AS other",
        "ATTACH 'host=127.0.0.1 port={port}' AS pg (TYPE postgres)",
        "USE memory",
        "DETACH memory",
    ),
    *_sql(
        "copy", REFUSED, _ONLY,
        "COPY trades TO '{made}'",
        "COPY (SELECT 1) TO '{made}' (FORMAT parquet)",
        "COPY (SELECT 1) TO '/dev/stdout'",
        "COPY trades FROM '{parquet}'",
        "CREATE TABLE a AS FROM read_text('{secret}')",
    ),
    *_sql(
        "copy", REFUSED, "",
        "EXPORT DATABASE '{made}'",
        "IMPORT DATABASE '{made}'",
        "WITH a AS (COPY (SELECT 1) TO '{made}') SELECT * FROM a",
    ),
    *_sql(
        "pragma", REFUSED, "",
        "PRAGMA database_list",
        "PRAGMA enable_profiling",
        "PRAGMA enable_logging",
        "CALL pragma_version()",
        "CALL enable_logging()",
        "SELECT * FROM pragma_table_info('trades')",
        "SELECT * FROM pragma_database_list",
        "CHECKPOINT",
        "FORCE CHECKPOINT",
        "SHOW TABLES",
        "SHOW ALL TABLES",
        "SHOW DATABASES",
    ),
    *_sql(
        "settings", REFUSED, "",
        "SET memory_limit = '50GB'",
        "SET GLOBAL enable_external_access = true",
        "SET lock_configuration = false",
        "RESET memory_limit",
        "SET VARIABLE a = 1",
        "SELECT current_setting('temp_directory')",
        "SELECT Current_Setting('temp_directory')",
        "SELECT main.current_setting('temp_directory')",
        "SELECT current_setting(n) FROM (VALUES ('temp_directory')) AS t(n)",
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM duckdb_secrets()",
        "CREATE SECRET a (TYPE s3, KEY_ID 'a', SECRET 'b')",
        "SELECT getenv('HOME')",
        "SELECT write_log('a')",
    ),
    *_sql(
        "extensions", REFUSED, _ONLY,
        "INSTALL httpfs",
        "INSTALL httpfs FROM 'http://127.0.0.1:{port}'",
        "LOAD httpfs",
        "LOAD '{made}'",
        "FORCE INSTALL spatial FROM community",
    ),
    *_sql(
        "writes", REFUSED, "",
        "CREATE TABLE a (b INT)",
        "CREATE VIEW a AS SELECT 1",
        "CREATE MACRO trades() AS TABLE SELECT 1",
        "CREATE OR REPLACE VIEW trades AS SELECT 1",
        "DROP VIEW trades",
        "INSERT INTO trades SELECT * FROM trades",
        "DELETE FROM trades",
        "UPDATE trades SET price = 1",
        "TRUNCATE trades",
        "MERGE INTO trades USING quotes ON true WHEN MATCHED THEN DELETE",
        "BEGIN",
        "COMMIT",
        "VACUUM",
        "COMMENT ON VIEW trades IS 'a'",
    ),
    *_sql(
        "several statements", REFUSED, "",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP VIEW trades",
        "SELECT 1;\n-- nothing\n;COPY (SELECT 1) TO '{made}'",
        "SELECT 1 /* ; */; ATTACH '{made}'",
        ";",
        "-- nothing",
        "PIVOT trades ON side USING sum(size)",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE SELECT * FROM trades",
        "PREPARE a AS SELECT 1",
        "EXECUTE a",
        "DEALLOCATE a",
    ),
    *_sql(
        "statements as text", REFUSED, _FROM,
        "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
        "SELECT * FROM query_table(['rejects'])",
        "SELECT * FROM query_table('duckdb_views')",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
        "SELECT * FROM histogram_values('duckdb_views', sql)",
    ),
    *_sql(
        "other tables", REFUSED, "",
        "SELECT * FROM rejects",
        "SELECT * FROM market.trades",
        "SELECT * FROM duckdb_views",
        "SELECT * FROM duckdb_views()",
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM pg_catalog.pg_class",
        "SELECT * FROM sqlite_master",
        "WITH sqlite_master AS (SELECT 1) SELECT * FROM sqlite_master",
        "SELECT * FROM (WITH duckdb_views AS (SELECT 1) FROM duckdb_views), duckdb_views",
        "SELECT * FROM database",
        "SELECT * FROM sql",
        "SELECT * FROM os.environ",
    ),
    _with("SELECT * FROM read_text($1)", ["{secret}"], says=_FROM),
    _with("SELECT * FROM $1", ["{secret}"]),
    _with("SELECT * FROM query_table($t)", {"t": "rejects"}, says=_FROM),
    _with("SELECT * FROM trades WHERE symbol = $1", ["' OR '1'='1"], SHORTENED),
    _with("SELECT * FROM trades WHERE symbol = $1", ["BHP'; DROP VIEW trades; --"], SHORTENED),
    _with("SELECT * FROM trades LIMIT $1", ["1; SELECT 2"]),
    _with("SELECT $1", []),
    _with("SELECT $1", [1, 2]),
    _with("SELECT $a", {"b": 1}),
    _with("SELECT $a", [1]),
    _with("SELECT 1", "text"),
    _with("SELECT $1::INT", [{"a": {"b": [1]}}]),
    _with("SELECT $1::INT", [10**18]),
    Attempt("parameters", b'{"sql": "SELECT $1", "parameters": ' + b"[" * 500 + b"]" * 500 + b"}"),
    Attempt("parameters", b'{"sql": "SELECT $1", "parameters": [[1, [2]]]}'),
    Attempt("bodies", b"[1]"),
    Attempt("bodies", b"{"),
    Attempt("bodies", b"\xff\xfe"),
    Attempt("bodies", b"[" * 100_000),
    Attempt("bodies", b'{"sql": 1}'),
    Attempt("bodies", b'{"sql": ""}'),
    Attempt("bodies", b'{"sql": "SELECT 1", "settings": {"memory_limit": "50GB"}}', says="unknown"),
    Attempt("bodies", b'{"sql": "SELECT 1", "format": "../../etc/passwd"}'),
    Attempt("bodies", b'{"sql": "SELECT 1", "format": ["json"]}'),
    Attempt("bodies", b'{"sql": "SELECT \\u0000 FROM trades"}'),
    Attempt("bodies", b'{"sql": "' + b" " * 1_100_000 + b'SELECT 1"}', 413),
    *_sql(
        "time bombs", LIMITED, "sql_timeout_ms",
        "SELECT count(*) FROM range(99999) a(n), range(99999) b(n), range(999) c(n)"
        " WHERE (a.n + b.n + c.n) % 7 = 8",
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t",
        "SELECT pg_sleep(60)",
        "SELECT sleep_ms(60000)",
        "SELECT sum(levenshtein(repeat('ab', 90000), repeat('ba', 90000)))",  # is killed
    ),
    *_sql(
        "memory bombs", LIMITED, "sql_memory_max",
        "SELECT range(1000000000)",
        "SELECT repeat('x', 2000000000)",
        "SELECT list(range) FROM range(1000000000)",
        "SELECT string_agg(repeat('x', 1000000)) FROM range(100000)",
        "SELECT list(a.range) OVER () FROM range(100000) a",
    ),
    *_sql(
        "memory bombs", LIMITED, "",  # which of the limits is met first depends on the machine
        "SELECT range AS r, hash(r) AS h FROM range(1000000000) ORDER BY h",
        "SELECT count(DISTINCT hash(range)) FROM range(10000000000)",
        "SELECT a.n FROM range(100000000) a(n) JOIN range(100000000) b(n) ON hash(a.n) = hash(b.n)",
    ),
    *_sql(
        "deep statements", EITHER, "",
        "SELECT " + "(" * 100_000 + "1" + ")" * 100_000,
        "SELECT " + "1 + " * 100_000 + "1",
        "SELECT " + "[" * 900 + "1" + "]" * 900,
        "SELECT " + "NOT " * 100_000 + "true",
        "SELECT " + "abs(" * 5_000 + "1" + ")" * 5_000,
        "SELECT * FROM " + "(SELECT * FROM " * 5_000 + "trades" + ")" * 5_000,
    ),
    *_sql(
        "huge results", SHORTENED, "",
        "SELECT * FROM range(1000000000000)",
        "SELECT t.* FROM trades t, range(1000000000)",
    ),
    *_sql(
        "huge results", LIMITED, "sql_bytes_max",
        "SELECT repeat('x', 2000) AS a FROM range(1000000000)",
        "SELECT repeat('x', 30000000) AS a",
    ),
]  # fmt: skip
