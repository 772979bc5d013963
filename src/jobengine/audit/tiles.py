"""The tree as C2SP tlog-tiles: which nodes a tile path stands for."""

import re
from dataclasses import dataclass

from jobengine.audit.merkle import Node

TILE_WIDTH = 256
_TILE_HEIGHT = 8
_MAX_LEVEL = 63
_PATH = re.compile(r"(0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,5})([0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tile:
    """*width* consecutive nodes, every eighth level of the tree; a partial tile is the right edge of some tree."""

    level: int
    index: int
    width: int = TILE_WIDTH

    def path(self) -> str:
        """Return the path below ``tile/``.

        >>> Tile(0, 1_234_067).path(), Tile(1, 0, 17).path()
        ('0/x001/x234/067', '1/000.p/17')
        """
        groups = f"{self.index:,}".split(",")
        *upper, last = [group.zfill(3) for group in groups]
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"{self.level}/" + "".join(f"x{group}/" for group in upper) + last + partial

    def nodes(self) -> list[Node]:
        """List the nodes whose hashes, concatenated, are the tile.

        >>> Tile(1, 0, 2).nodes()
        [(8, 0), (8, 1)]
        """
        first = self.index * TILE_WIDTH
        return [(self.level * _TILE_HEIGHT, first + offset) for offset in range(self.width)]

    def is_within(self, size: int) -> bool:
        """Tell whether all nodes of the tile are complete in a tree of *size* leaves."""
        return self.index * TILE_WIDTH + self.width <= size >> self.level * _TILE_HEIGHT


def parse_tile(path: str) -> Tile:
    """Read the path below ``tile/``; a path has one spelling only. Raises ValueError.

    >>> parse_tile("0/x001/x234/067.p/8")
    Tile(level=0, index=1234067, width=8)
    """
    found = _PATH.fullmatch(path)
    if found is None:
        raise ValueError("not the path of a tile")
    index = int(found[2].replace("x", "").replace("/", "") + found[3])
    tile = Tile(int(found[1]), index, int(found[4] or TILE_WIDTH))
    if tile.level > _MAX_LEVEL or tile.width > TILE_WIDTH or tile.path() != path:
        raise ValueError("not the path of a tile")
    return tile
