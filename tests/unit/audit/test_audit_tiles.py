import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobengine.audit.tiles import Tile, parse_tile


@given(st.builds(Tile, st.integers(0, 63), st.integers(0, 10**15), st.integers(1, 256)))
def test_a_tile_is_found_by_its_path(tile: Tile) -> None:
    """Path and tile name each other."""
    assert parse_tile(tile.path()) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "0",
        "0/",
        "0/1",
        "0/0001",
        "00/001",
        "64/001",
        "0/x000/001",
        "0/001/002",
        "0/x001/x002",
        "0/001.p/0",
        "0/001.p/01",
        "0/001.p/256",
        "0/001.p/999",
        "0/001.p",
        "-1/001",
        "entries/001",
        "0/001\n",
        "0/\u0660\u0660\u0661",
        "0/../001",
    ],
)
def test_a_path_has_one_spelling(path: str) -> None:
    """What is not exactly the path of a tile names nothing."""
    with pytest.raises(ValueError):
        parse_tile(path)


def test_tiles_of_the_specification_are_within() -> None:
    """A tree of 70,000 leaves has the tiles that C2SP tlog-tiles lists, and no further ones."""
    for tile in (Tile(0, 272), Tile(0, 273, 112), Tile(1, 0), Tile(1, 1, 17), Tile(2, 0, 1)):
        assert tile.is_within(70_000)
    for tile in (Tile(0, 273), Tile(0, 273, 113), Tile(1, 1, 18), Tile(2, 0, 2), Tile(3, 0, 1)):
        assert not tile.is_within(70_000)


def test_a_tile_lists_every_eighth_level() -> None:
    """Level 1 of the tiles is level 8 of the tree."""
    assert Tile(0, 2).nodes()[0] == (0, 512)
    assert Tile(1, 1, 2).nodes() == [(8, 256), (8, 257)]
