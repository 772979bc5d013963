"""The lines of an export: everything `jobengine-verify` needs, in bytes that have one spelling."""

from collections.abc import Iterable

from jobengine.audit.canonical import canonical
from jobengine.audit.model import Opening


def head_line(note: str) -> bytes:
    r"""Return line 1, which carries the signed checkpoint *note*.

    >>> head_line("text\n")
    b'{"format":1,"checkpoint":"text\\n"}\n'
    """
    return b'{"format":1,"checkpoint":' + canonical(note) + b"}\n"


def entry_line(leaf: bytes, openings: Iterable[Opening]) -> bytes:
    r"""Return the line of one entry: its leaf, verbatim, and the openings that have not been erased.

    >>> entry_line(b'{"reason":null}', [])
    b'{"entry":{"reason":null},"open":{}}\n'
    """
    opened = {opening.field: [opening.salt.hex(), opening.text] for opening in openings}
    return b'{"entry":' + leaf + b',"open":' + canonical(opened) + b"}\n"


def withheld_line(leaf_hashes: Iterable[bytes]) -> bytes:
    r"""Return the line that stands for a run of entries of which only the hashes are told.

    >>> withheld_line([bytes(32)])[:20]
    b'{"withheld":["000000'
    """
    return canonical({"withheld": [hashed.hex() for hashed in leaf_hashes]}) + b"\n"
