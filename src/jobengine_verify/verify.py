"""The check itself: an export against the checkpoint it carries and, if there is one, an earlier checkpoint."""

from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO

from jobengine_verify.export import BadEntry, Entry, read_entries, read_head
from jobengine_verify.notes import Checkpoint, Forged, Key, open_checkpoint


@dataclass(frozen=True, slots=True)
class Intact:
    """Every entry the checkpoint speaks of is in the file as it was signed; *withheld* texts were not opened."""

    checkpoint: Checkpoint
    tenant_id: str | None
    withheld: int


@dataclass(frozen=True, slots=True)
class Named:
    """The first bad entry: its index, counted from 0, and its id as far as the line can be read."""

    index: int
    entry_id: str | None


@dataclass(frozen=True, slots=True)
class Missing:
    """The first entry that the file lacks, unless one from *earliest* on was taken out and the others moved up."""

    index: int
    earliest: int


@dataclass(frozen=True, slots=True)
class Among:
    """The first bad entry is one of these: a leaf that is well formed shows its change in the tree's root alone."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Tampered:
    """The file is not what the log signed; *first_bad* None means that it is not the entries that show it."""

    problem: str
    first_bad: Named | Missing | Among | None = None


class Tree:
    """An RFC 9162 tree that keeps only the roots of its complete subtrees.

    >>> Tree().root().hex()[:16]
    'e3b0c44298fc1c14'
    """

    def __init__(self) -> None:
        self.size = 0
        self._roots: list[bytes] = []

    def add(self, leaf_hash: bytes) -> None:
        """Append one leaf."""
        node, index = leaf_hash, self.size
        while index % 2:
            node = sha256(b"\x01" + self._roots.pop() + node).digest()
            index //= 2
        self._roots.append(node)
        self.size += 1

    def root(self) -> bytes:
        """Return the tree hash of all leaves so far."""
        if not self._roots:
            return sha256(b"").digest()
        *rest, node = self._roots
        for left in reversed(rest):
            node = sha256(b"\x01" + left + node).digest()
        return node


def check_export(file: BinaryIO, key: Key, since: Checkpoint | None = None) -> Intact | Tampered:
    """Check the export in *file* in one pass; raises CannotCheck when it is unreadable or not signed by *key*."""
    try:
        checkpoint = open_checkpoint(read_head(file), key)
    except Forged as error:
        return Tampered(str(error))
    if since and since.size > checkpoint.size:
        problem = f"the log had {since.size} entries before and has {checkpoint.size} now"
        return Tampered(problem, Missing(checkpoint.size, checkpoint.size))
    return _Reading(checkpoint, since or Checkpoint(checkpoint.origin, 0, Tree().root())).run(file)


class _Reading:
    """One pass over the entries of an export, which must begin with the tree of *since* and be that of *checkpoint*."""

    def __init__(self, checkpoint: Checkpoint, since: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._since = since
        self._tree = Tree()
        self._as_before = self._tree.root() == since.root
        self._tenant_id: str | None = None
        self._withheld = 0

    def run(self, file: BinaryIO) -> Intact | Tampered:
        try:
            for entry in read_entries(file):
                if self._tree.size == self._checkpoint.size:
                    return self._surplus(entry)
                if self._tree.size and entry.tenant_id != self._tenant_id:
                    problem = "the entry is not of the tenant of those before it"
                    return Tampered(problem, Named(self._tree.size, entry.entry_id))
                self._take(entry)
        except BadEntry as error:
            return Tampered(error.problem, Named(self._tree.size, error.entry_id))
        return self._verdict()

    def _take(self, entry: Entry) -> None:
        self._tenant_id = entry.tenant_id
        self._withheld += entry.withheld
        self._tree.add(entry.leaf_hash)
        if self._tree.size == self._since.size:
            self._as_before = self._tree.root() == self._since.root

    def _surplus(self, entry: Entry) -> Tampered:
        problem = f"the file holds more entries than the {self._checkpoint.size} of the checkpoint"
        if self._tree.root() == self._checkpoint.root:
            return Tampered(problem, Named(self._tree.size, entry.entry_id))
        return Tampered(problem, self._suspects())

    def _verdict(self) -> Intact | Tampered:
        held, signed = self._tree.size, self._checkpoint.size
        if held < signed:
            problem = f"the file holds {held} entries, the checkpoint says {signed}"
            return Tampered(problem, Missing(held, self._since.size if self._as_before else 0))
        if self._tree.root() != self._checkpoint.root:
            return Tampered("the entries are not those that were signed", self._suspects())
        if not self._as_before:
            problem = "the log was rewritten: it signed both checkpoints, and the later does not continue the earlier"
            return Tampered(problem, self._suspects())
        return Intact(self._checkpoint, self._tenant_id, self._withheld)

    def _suspects(self) -> Among | None:
        """Return where a change must be, given that one of the trees is not the signed one."""
        first, end = (self._since.size, self._tree.size) if self._as_before else (0, self._since.size)
        return Among(first, end - 1) if first < end else None
