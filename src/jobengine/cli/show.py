"""What commands print: JSON for programs, tables for people."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from jobengine.cli.call import Call

Column: TypeAlias = str | Callable[[Mapping[str, Any]], object]
Columns: TypeAlias = Mapping[str, Column]
"""Heading → the member to show, with a dot for each step inwards, or a function of the item."""


def print_json(document: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def print_note(text: str) -> None:
    """Tell a person something that is no result."""
    sys.stderr.write(f"{text}\n")


def show_list(call: Call, page: Mapping[str, Any], columns: Columns) -> None:
    """Print a page of items."""
    if call.as_json:
        print_json(page)
    else:
        print_table(page["items"], columns)
    if page.get("next_page_token") is not None:
        print_note(f"note: the first {len(page['items'])} are shown; there are more (--limit)")


def show_one(call: Call, document: Mapping[str, Any], line: str | None = None) -> None:
    """Print one resource: for a person *line* if there is one, else member by member."""
    if call.as_json:
        print_json(document)
    elif line is not None:
        sys.stdout.write(f"{line}\n")
    else:
        print_table([{"name": name, "value": value} for name, value in flat(document)], {"": "name", " ": "value"})


def print_table(rows: Sequence[Mapping[str, Any]], columns: Columns) -> None:
    """Print *rows* under headings; away from a terminal no line is broken or cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    headed = any(heading.strip() for heading in columns)
    table = Table(box=box.SIMPLE_HEAD if headed else None, show_header=headed, pad_edge=False, show_edge=False)
    for heading in columns:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(pick(row, column))) for column in columns.values()))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    console.width = 10_000
    with console.capture() as drawn:
        console.print(table)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in drawn.get().splitlines()))


def pick(row: Mapping[str, Any], column: Column) -> object:
    """Return what *column* shows of *row*; a member that is missing on the way shows as None.

    >>> pick({"limits": {"max_active": 5}}, "limits.max_active"), pick({"limits": None}, "limits.burst")
    (5, None)
    """
    if not isinstance(column, str):
        return column(row)
    found: Any = row
    for step in column.split("."):
        if found is None:
            break
        found = found.get(step)
    return found


def cell(value: object) -> str:
    r"""Write *value* for a table; what could steer a terminal is shown, not sent.

    >>> cell(None), cell(True), cell(1.0), cell("a\x1b[2J")
    ('-', 'yes', '1', 'a\\x1b[2J')
    """
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case float() if value.is_integer():
            return str(int(value))
        case dict() | list():
            text = json.dumps(value, ensure_ascii=False)
        case _:
            text = str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def flat(document: Any, prefix: str = "") -> list[tuple[str, object]]:
    """List the members of *document*, inner ones by their dotted names.

    >>> flat({"paused": False, "limits": {"burst": 3}, "tags": []})
    [('paused', False), ('limits.burst', 3), ('tags', [])]
    """
    members: list[tuple[str, object]] = []
    for name, value in document.items():
        inner = flat(value, f"{prefix}{name}.") if isinstance(value, dict) else []
        members += inner or [(prefix + name, value)]
    return members
