"""The OpenAPI document as a page of HTML: one file without scripts, readable without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import quote

__all__ = ["POLICY", "page"]

_STYLE = files("k2.web").joinpath("docs.css").read_text()
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
#: Nothing may be loaded, run, sent or framed; the one style is known by its hash.
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
#: Of a URL in an example: what is readable as it is, and safe between quotes of a shell.
_PLAIN = ",:/-._~"


def page(document: Mapping[str, Any], url: str) -> str:
    """The page of a document; `url`: of the worker, for the examples."""
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method != "head"
    ]
    groups = {tag["name"]: tag["description"] for tag in document["tags"]}
    menu, body = "", ""
    for group, says in groups.items():
        own = [each for each in operations if group in each[2]["tags"]]
        links = "".join(_link(path, operation) for path, _, operation in own)
        menu += f"<li><span>{_text(group)}</span><ul>{links}</ul></li>"
        body += f'<h2 id="{_anchor(group)}">{_text(group)}</h2><p class="lead">{_text(says)}</p>'
        body += "".join(_Operation(document, url, *each).html() for each in own)
    info = document["info"]
    schemas = document["components"]["schemas"]
    shapes = "".join(_schema(name, schemas[name]) for name in schemas)
    paragraphs = "".join(f"<p>{_text(part)}</p>" for part in info["description"].split("\n\n"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_text(info['title'])}: HTTP</title><style>{_STYLE}</style></head><body>"
        f'<nav><a class="name" href="#top">{_text(info["title"])}</a><ul>{menu}'
        '<li><span>Shapes</span><ul><li><a href="#shapes">of records and answers</a></li></ul></li>'
        "</ul></nav><main>"
        f'<header id="top"><h1>{_text(info["title"])} over HTTP</h1>{paragraphs}'
        f'<p class="meta">version {_text(info["version"])} · '
        f'<a href="/openapi.json">openapi.json</a></p></header>{body}'
        f'<h2 id="shapes">Shapes</h2><p class="lead">Of records and answers in JSON.</p>{shapes}'
        "</main></body></html>\n"
    )


def _link(path: str, operation: Mapping[str, Any]) -> str:
    return f'<li><a href="#{_anchor(path)}">{_text(operation["summary"])}</a></li>'


class _Operation:
    """One way to ask."""

    def __init__(
        self, document: Mapping[str, Any], url: str, path: str, method: str, said: dict[str, Any]
    ) -> None:
        self._document, self._url = document, url
        self._path, self._method, self._said = path, method.upper(), said

    def html(self) -> str:
        said, path = self._said, escape(self._path)
        for name in re.findall(r"{\w+}", path):
            path = path.replace(name, f"<i>{name}</i>")
        return (
            f'<section id="{_anchor(self._path)}"><h3>{_text(said["summary"])}</h3>'
            f'<p class="route"><b class="{self._method.lower()}">{self._method}</b>'
            f"<code>{path}</code><small>{self._key()}</small></p>"
            f"<p>{_text(said.get('description', ''))}</p>"
            f'<pre class="curl"><code>{escape(self._curl())}</code></pre>'
            f"{self._parameters()}{self._answers()}</section>"
        )

    def _key(self) -> str:
        needs = self._said["security"]
        if not needs:
            return "open to all"
        (scope,) = needs[0]["bearer"]
        least = "; none on the same machine" if {} in needs else ""
        return f"key with <code>{escape(scope)}</code>{least}"

    def _curl(self) -> str:
        path, asked = self._path, []
        for parameter in self._said.get("parameters", ()):
            text = _plain(parameter.get("example", ""))
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", quote(text, safe=_PLAIN))
            elif parameter["name"] in _SHOWN and text:
                asked.append(f"{parameter['name']}={quote(text, safe=_PLAIN)}")
        command = f"curl '{self._url.rstrip('/')}{path}{'?' if asked else ''}{'&'.join(asked)}'"
        if self._said["security"] and {} not in self._said["security"]:
            command += ' \\\n  -H "Authorization: Bearer $K2_API_KEY"'
        if body := self._said.get("requestBody"):
            ((media, content),) = body["content"].items()
            example = json.dumps(content["example"])
            command += f" \\\n  -H 'Content-Type: {media}' \\\n  -d '{example}'"
        return command

    def _parameters(self) -> str:
        rows = [
            (p["name"], p["in"], p["schema"], p["description"], p.get("required"), p.get("example"))
            for p in self._said.get("parameters", ())
        ]
        if body := self._said.get("requestBody"):
            shape = next(iter(body["content"].values()))["schema"]
            rows += [
                (name, "body", of, of["description"], name in shape["required"], None)
                for name, of in shape["properties"].items()
            ]
        lines = "".join(
            f"<tr><td><code>{escape(name)}</code>{_mark(place, required)}</td>"
            f"<td>{_kind(shape)}{_default(shape)}</td>"
            f"<td>{_text(says)}{_example(example)}</td></tr>"
            for name, place, shape, says, required, example in rows
        )
        return _table("Parameters", ("name", "is", ""), lines)

    def _answers(self) -> str:
        lines = "".join(
            f'<tr class="s{status[0]}"><td><code>{status}</code></td>'
            f"<td>{_text(answer['description'])}{self._content(answer)}</td></tr>"
            for status, answer in self._said["responses"].items()
        )
        good = [status for status in self._said["responses"] if status < "4"]
        lines_of = "".join(
            f"<li><code>{escape(media)}</code>{_reference(content.get('schema'))}</li>"
            for media, content in self._said["responses"][good[-1]].get("content", {}).items()
        )
        formats = f'<ul class="formats">{lines_of}</ul>' if lines_of else ""
        table = _table("Answers", ("status", ""), lines)
        return f"<h4>Gives</h4>{formats}<details><summary>Statuses</summary>{table}</details>"

    def _content(self, answer: Mapping[str, Any]) -> str:
        names = [name for name in answer.get("headers", {}) if name != "X-Request-Id"]
        if not names:
            return ""
        return "<small>" + ", ".join(f"<code>{escape(name)}</code>" for name in names) + "</small>"


#: What the examples ask by.
_SHOWN = ("symbol", "range", "interval", "table", "speed")


def _schema(name: str, shape: Mapping[str, Any]) -> str:
    required = shape.get("required", ())
    lines = "".join(
        f"<tr><td><code>{escape(member)}</code>"
        f"{'' if member in required or not required else '<small>may be absent</small>'}</td>"
        f"<td>{_kind(of)}</td><td>{_text(of.get('description', ''))}</td></tr>"
        for member, of in shape.get("properties", {}).items()
    )
    table = f"<table>{lines}</table>"
    return f'<details id="{_anchor(name)}"><summary>{_text(name)}</summary>{table}</details>'


def _kind(shape: Mapping[str, Any]) -> str:
    """What a value is, in a word or two."""
    if "$ref" in shape:
        name = shape["$ref"].rpartition("/")[2]
        return f'<a href="#{_anchor(name)}">{_text(name)}</a>'
    if "anyOf" in shape or "oneOf" in shape:
        return " or ".join(_kind(each) for each in shape.get("anyOf", shape.get("oneOf")))
    if "const" in shape:
        return f"<code>{escape(_plain(shape['const']))}</code>"
    if shape.get("enum"):
        return " ".join(f"<code>{escape(_plain(each))}</code>" for each in shape["enum"])
    kinds = shape.get("type", "anything")
    named = kinds if isinstance(kinds, list) else [kinds]
    if named == ["array"]:
        return f"list of {_kind(shape.get('items', {}))}"
    if shape.get("format") and named[0] == "string":
        named = [shape["format"], *named[1:]]
    bounds = [f"{shape[at]:,}" for at in ("minimum", "maximum") if at in shape]
    within = f"{' to '.join(bounds)}{'' if len(bounds) > 1 else ' or more'}" if bounds else ""
    return escape(" or ".join(named)) + (f" <small>{within}</small>" if within else "")


def _mark(place: str, required: bool | None) -> str:
    words = [] if place == "query" else [place]
    return f"<small>{', '.join([*words, *(['required'] if required else [])])}</small>"


def _default(shape: Mapping[str, Any]) -> str:
    if "default" not in shape:
        return ""
    return f"<small>else <code>{escape(_plain(shape['default']))}</code></small>"


def _example(example: Any) -> str:
    return "" if example in (None, "") else f" <q>{escape(_plain(example))}</q>"


def _reference(shape: Mapping[str, Any] | None) -> str:
    found = sorted(set(re.findall(r"#/components/schemas/(\w+)", json.dumps(shape or {}))))
    links = ", ".join(f'<a href="#{_anchor(name)}">{_text(name)}</a>' for name in found)
    return f" of {links}" if links else ""


def _table(title: str, heads: Iterable[str], lines: str) -> str:
    if not lines:
        return ""
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    return f"<h4>{escape(title)}</h4><table><thead><tr>{head}</tr></thead>{lines}</table>"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _text(text: str) -> str:
    """Plain text as HTML; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _anchor(name: str) -> str:
    return "-".join(re.findall(r"[A-Za-z0-9]+", name))
