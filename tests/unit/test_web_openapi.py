"""The OpenAPI document and its page, of the application as a worker has it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from k2.errors import K2Error
from k2.settings import Settings
from k2.web import docs
from k2.web.keys import scope_of
from k2.web.params import TEXT, Parameter, Parameters
from k2.web.problems import TYPES, type_of
from k2.web.routes import Route, in_json
from k2.web.shapes import record

#: A worker's whole application, by its role: it is made once in a process.
SITES = {
    "all": """
from k2.web.site import app, site
app.web.init_server()
""",
    "query": """
from k2.settings import load
from k2.web.query import site_of
async def made():
    return site_of(load())
site = asyncio.run(made())
""",
}
ASKED = """
routes = {(r.method, r.resource.canonical): r.handler for r in site.router.routes() if r.resource}
async def ask(path):
    return await routes["GET", path](make_mocked_request("GET", path))
told, shown = (asyncio.run(ask(path)) for path in ("/openapi.json", "/docs"))
policy = shown.headers["Content-Security-Policy"]
print(json.dumps([list(routes), json.loads(told.body), shown.text, policy]))
"""


@pytest.fixture(scope="module", params=list(SITES))
def application(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, ...]:
    """Its routes, its document, its page and the policy of that."""
    script = "import asyncio, json\nfrom aiohttp.test_utils import make_mocked_request\n"
    script += SITES[request.param] + ASKED
    environment = {name: value for name, value in os.environ.items() if name[:3] != "K2_"}
    environment |= {"K2_DATA": str(tmp_path_factory.mktemp("data")), "K2_ROLE": request.param}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def test_the_document_is_valid_openapi_3_1(application: tuple[Any, ...]) -> None:
    validate(application[1], cls=OpenAPIV31SpecValidator)


def test_the_document_has_all_public_routes_and_no_other(application: tuple[Any, ...]) -> None:
    """Public is what does not need the scope admin."""
    routes, document, *_ = application
    served = {(method, path) for method, path in routes if scope_of(path) != "admin"}
    said = {(m.upper(), path) for path, methods in document["paths"].items() for m in methods}
    assert said == served
    assert len(
        {op["operationId"] for each in document["paths"].values() for op in each.values()}
    ) == len(said)


def test_keys_are_said_as_they_are_wanted(application: tuple[Any, ...]) -> None:
    for path, methods in application[1]["paths"].items():
        for operation in methods.values():
            scopes = {
                s for needed in operation["security"] for each in needed.values() for s in each
            }
            assert scopes == ({scope_of(path)} - {None}), path
            assert ("401" in operation["responses"]) == bool(scopes), path


def test_types_of_problems_are_those_of_errors(application: tuple[Any, ...]) -> None:
    known = {f"{TYPES}{type_of(each)}" for each in K2Error.__subclasses__()}
    text = json.dumps(application[1])
    said = set(re.findall(rf"{TYPES}[a-z-]+", text)) - {f"{TYPES}http"}
    assert said <= known
    assert {f"{TYPES}{name}" for name in ("bad-query", "sql-busy", "peer-unavailable")} <= said


def test_every_column_is_said(application: tuple[Any, ...]) -> None:
    """Whoever adds a column to an answer says in `k2.web.columns` what it is."""
    for name in ("Trade", "Quote", "Bar", "Gap", "Snapshot", "Instrument", "Traded"):
        columns = application[1]["components"]["schemas"][name]["properties"]
        assert not [column for column, shape in columns.items() if "description" not in shape], name


class _Read(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.anchors |= {of["id"]} if "id" in of else set()
        self.links += [of["href"]] if tag == "a" else []
        self.loaded += [value for name, value in of.items() if name in ("src", "style")]
        assert not [name for name in of if name.startswith("on")]


def test_the_page_has_everything_and_nothing_from_elsewhere(application: tuple[Any, ...]) -> None:
    _, document, page, policy = application
    read = _Read()
    read.feed(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    assert read.loaded == []
    assert {link for link in read.links if not link.startswith("#")} == {"/openapi.json"}
    assert {link[1:] for link in read.links if link.startswith("#")} <= read.anchors
    assert page.count("<section") == len(document["paths"])
    for path, methods in document["paths"].items():
        assert next(iter(methods.values()))["summary"] in page, path
    style = page.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")


async def _view(request: Any, query: Parameters) -> Any:
    raise NotImplementedError


def test_what_is_said_is_escaped() -> None:
    takes = (Parameter("a", TEXT, "<script>1</script> & `<b>`", '"><i>'),)
    route = Route("GET", "/v1/<x>", _view, "Ask", "<u>", in_json({"type": "object"}), takes=takes)
    found = docs.document([route], Settings())
    page = docs.page(found, "http://127.0.0.1:1")
    assert "<script" not in page
    assert "&lt;script&gt;1&lt;/script&gt; &amp; <code>&lt;b&gt;</code>" in page
    assert "<u>" not in page
    assert '"><i>' not in page


def test_a_view_reads_nothing_that_is_not_declared() -> None:
    query = Parameters({}, ("known",))
    assert query[Parameter("known", TEXT, "")] is None
    with pytest.raises(LookupError, match="other is read, but not declared"):
        query[Parameter("other", TEXT, "")]


def test_a_type_of_which_json_is_not_known_is_refused() -> None:
    with pytest.raises(TypeError, match="bool"):
        record("One", pa.schema([pa.field("a", pa.bool_())]))


def test_two_shapes_do_not_share_a_name() -> None:
    shapes = [{"title": "One", "type": "string"}, {"title": "One", "type": "integer"}]
    routes = [Route("GET", f"/v1/{n}", _view, "Ask", "", in_json(s)) for n, s in enumerate(shapes)]
    with pytest.raises(ValueError, match="two schemas are called One"):
        docs.document(routes, Settings())
