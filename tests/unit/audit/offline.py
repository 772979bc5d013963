"""A log of two hundred entries, its export, and ways to alter it."""

from collections.abc import Callable

from tests.unit.audit.samples import entry, export, salts, sealed_entries

from jobengine.audit.export import entry_line
from jobengine.audit.model import seal

ENTRIES = sealed_entries(200)
EXPORT = export(ENTRIES)
LINES = EXPORT.splitlines(keepends=True)

Answer = tuple[int, str]
Ask = Callable[..., Answer]


def replaced(place: int, line: bytes) -> bytes:
    return b"".join([*LINES[: place + 1], line, *LINES[place + 2 :]])


def resealed(place: int, **changes: object) -> bytes:
    """Write the export with one entry made anew, as somebody who knows the format would."""
    sealed = seal(entry(place, **changes), salts())
    return replaced(place, entry_line(sealed.leaf, sealed.openings))
