"""The check itself: an export against the checkpoint it carries and, if there is one, an earlier checkpoint."""

from dataclasses import dataclass
from typing import BinaryIO

from jobengine_verify.export import Block, Lines, entry_id_in, read_blocks, read_head
from jobengine_verify.notes import Checkpoint, Forged, Key, open_checkpoint
from jobengine_verify.tree import Tiles, Tree


@dataclass(frozen=True, slots=True)
class Intact:
    """Every entry the checkpoint speaks of is in the file as it was signed, or as its hash alone: *withheld* of them.

    *closed* texts were not opened.
    """

    checkpoint: Checkpoint
    tenant_id: str | None
    closed: int
    withheld: int


@dataclass(frozen=True, slots=True)
class Named:
    """The first bad entry: its index, counted from 0, and the id that the file has there as far as it can be read."""

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


def check_export(
    file: BinaryIO, key: Key, since: Checkpoint | None = None, tiles: BinaryIO | None = None
) -> Intact | Tampered:
    """Check the export in *file* in one pass; raises CannotCheck when it is unreadable or not signed by *key*.

    *tiles*, the leaf hashes of the log, change nothing about the verdict; they tell which entry is the first bad one.
    """
    forged = None
    try:
        checkpoint = open_checkpoint(read_head(file), key)
    except Forged as error:
        # What the earlier checkpoint vouches for can still be told from what it does not.
        if since is None:
            return Tampered(str(error))
        checkpoint, forged = since, str(error)
    if since and since.size > checkpoint.size:
        problem = f"the log had {since.size} entries before and has {checkpoint.size} now"
        return Tampered(problem, Missing(checkpoint.size, checkpoint.size))
    before = since or Checkpoint(checkpoint.origin, 0, Tree().root())
    reading = _Reading(checkpoint, before, Tiles(tiles) if tiles else None)
    outcome = reading.run(file)
    if forged is None:
        return outcome
    # Beyond the earlier checkpoint nothing is known of this log.
    return Tampered(forged, outcome.first_bad if isinstance(outcome, Tampered) and not reading.as_before else None)


class _Reading:
    """One pass over the entries of an export, which must begin with the tree of *since* and be that of *checkpoint*."""

    def __init__(self, checkpoint: Checkpoint, since: Checkpoint, tiles: Tiles | None) -> None:
        self._checkpoint = checkpoint
        self._since = since
        self._tiles = tiles
        self._other_id: str | None = None
        self._tree = Tree()
        self._lines = Lines()
        self.as_before = self._tree.root() == since.root

    def run(self, file: BinaryIO) -> Intact | Tampered:
        tampered = self._read(file)
        if tampered is None:
            tampered = self._verdict()
        if tampered is None:
            return Intact(self._checkpoint, self._lines.tenant_id, self._lines.closed, self._lines.withheld)
        return Tampered(tampered.problem, self._told_by_tiles(tampered.first_bad) or tampered.first_bad)

    def _read(self, file: BinaryIO) -> Tampered | None:
        for block in read_blocks(file):
            leaf_hashes, problem = self._lines.leaf_hashes(block)
            room = self._checkpoint.size - self._tree.size
            self._take(leaf_hashes[:room], block)
            if len(leaf_hashes) > room:
                return self._surplus(block.line_of(room))
            if problem:
                entry_id = entry_id_in(block.line_of(len(leaf_hashes)))
                self._other_id = self._other_id or entry_id
                return Tampered(problem, Named(self._tree.size, entry_id))
        return None

    def _take(self, leaf_hashes: list[bytes], block: Block) -> None:
        if self._tiles and (place := self._tiles.compare(self._tree, leaf_hashes)) is not None:
            self._other_id = entry_id_in(block.line_of(place))
        before = self._since.size - self._tree.size
        if 0 < before <= len(leaf_hashes):
            self._tree.extend(leaf_hashes[:before])
            self.as_before = self._tree.root() == self._since.root
            leaf_hashes = leaf_hashes[before:]
        self._tree.extend(leaf_hashes)

    def _surplus(self, line: str) -> Tampered:
        problem = f"the file holds more entries than the {self._checkpoint.size} of the checkpoint"
        if self._tree.root() == self._checkpoint.root:
            return Tampered(problem, Named(self._tree.size, entry_id_in(line)))
        return Tampered(problem, self._suspects())

    def _verdict(self) -> Tampered | None:
        held, signed = self._tree.size, self._checkpoint.size
        if held < signed:
            problem = f"the file holds {held} entries, the checkpoint says {signed}"
            return Tampered(problem, Missing(held, self._since.size if self.as_before else 0))
        if self._tree.root() != self._checkpoint.root:
            return Tampered("the entries are not those that were signed", self._suspects())
        if not self.as_before:
            problem = "the log was rewritten: it signed both checkpoints, and the later does not continue the earlier"
            return Tampered(problem, self._suspects())
        return None

    def _suspects(self) -> Among | None:
        """Return where a change must be, given that one of the trees is not the signed one."""
        first, end = (self._since.size, self._tree.size) if self.as_before else (0, self._since.size)
        return Among(first, end - 1) if first < end else None

    def _told_by_tiles(self, first_bad: object) -> Named | Missing | None:
        """Return the first entry that is not the one of the tiles, if they are those of a tree that was signed."""
        if self._tiles is None:
            return None
        told = self._tiles.finish(self._tree)
        other = self._tiles.first_other
        signed = {(signed.size, signed.root) for signed in (self._checkpoint, self._since)}
        if other is None or other >= told.size or (told.size, told.root()) not in signed:
            return None
        if other == self._tree.size and isinstance(first_bad, Missing):
            return Missing(other, other)
        return Named(other, self._other_id)
