"""One record for people: its facts, key and value as text where they are, and as bytes."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from k2.cli.output import console

__all__ = ["show_record"]

_FRAME_BYTES = 5  # Confluent's: a zero, then the schema id


def show_record(row: dict[str, Any], most: int | None) -> None:
    """Print a row of the rejects table; of key and value the first `most` bytes (None: all)."""
    screen = console()
    facts = Table(box=None, show_header=False)
    value = row["value"]
    told = {
        name: row[name] for name in row if name not in ("key", "value") and row[name] is not None
    }
    if value is not None and len(value) >= _FRAME_BYTES and value[0] == 0:
        told["schema id"] = int.from_bytes(value[1:_FRAME_BYTES], "big")
    for name, fact in told.items():
        facts.add_row(name, str(fact))
    screen.print(facts)
    for name in ("key", "value"):
        data: bytes | None = row[name]
        if data is None:
            screen.print(f"{name}: null")
            continue
        screen.print(f"{name}: {len(data):,} bytes{_text(data, most)}")
        shown = data if most is None else data[:most]
        for line in _hex(shown):
            screen.print(f"  {line}")
        if len(shown) < len(data):
            screen.print(f"  ... {len(data) - len(shown):,} more (--all)")


def _text(data: bytes, most: int | None) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return ""
    if not text.isprintable() or (most is not None and len(text) > most):
        return ""
    return f": {text}"


def _hex(data: bytes) -> list[str]:
    lines = []
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"{at:08x}  {piece.hex(' '):<47}  {shown}")
    return lines
