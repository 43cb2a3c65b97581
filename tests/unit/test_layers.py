"""Imports go down the layers only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Top-level part of K2: its layer. A part may import from its own layer and from those below.
LAYERS = {
    "": 0, "errors": 0, "settings": 0, "metrics": 0,
    "records": 1, "schemas": 1, "security": 1, "keys": 1, "keyfile": 1,
    "process": 1, "server": 1,
    "transport": 2, "codec": 2, "registry": 2, "sequence": 2, "calendars": 2,
    "buffer": 2, "live": 2, "silence": 2,
    "lake": 3,
    "query": 4, "replay": 4, "sandbox": 4, "client": 4,
    "app": 5, "topics": 5, "logs": 5, "holes": 5, "changelog": 5,
    "tables": 6,
    "agents": 7,
    "web": 8, "cli": 8, "feeds": 8, "dev": 8, "__main__": 8,
}  # fmt: skip


def modules() -> list[tuple[str, Path]]:
    found = [("k2." + _dotted(path, ROOT / "k2"), path) for path in (ROOT / "k2").rglob("*.py")]
    for folder in ("agents", "tables"):
        top = ROOT / folder
        found += [(f"k2.{folder}." + _dotted(path, top), path) for path in top.rglob("*.py")]
    return [(name.rstrip("."), path) for name, path in found]


def _dotted(path: Path, top: Path) -> str:
    return ".".join(path.relative_to(top).with_suffix("").parts).removesuffix("__init__")


def layer(module: str) -> int:
    parts = module.split(".")
    return LAYERS[parts[1] if len(parts) > 1 else ""]


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(value))
def test_imports_go_down_only(name: str, path: Path) -> None:
    """A module imports nothing from a higher layer, not even inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("k2"):
            imported = [node.module]
            if node.module == "k2":
                imported = [f"k2.{alias.name}" for alias in node.names if alias.name in LAYERS]
        elif isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names if alias.name.startswith("k2")]
        else:
            continue
        for target in imported:
            assert layer(target) <= layer(name), f"{name} imports {target}, of a higher layer"
