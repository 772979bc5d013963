"""Named queries: every SQL text of the product lives in ``sql/*.sql`` under ``-- name: …``."""

import re
from collections.abc import Mapping
from importlib.resources import files

_MARK = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def split(text: str) -> dict[str, str]:
    r"""Split a file at its name marks; the comment under a mark is the query's promise.

    >>> split("-- name: one\n-- Always one.\nselect 1;\n")
    {'one': '-- Always one.\nselect 1'}
    """
    parts = _MARK.split(text)[1:]
    return {name: body.strip().removesuffix(";") for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _load() -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    for file in sorted((files("jobengine.storage") / "sql").iterdir(), key=lambda entry: entry.name):
        for name, text in split(file.read_text()).items():
            if name in found:
                message = f"two queries are named {name}"
                raise ValueError(message)
            found[name] = text.encode()
    return found


QUERIES: Mapping[str, bytes] = _load()
