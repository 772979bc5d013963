import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobengine.authority.master_key import Label, MasterKey, SealBroken, seal, unseal

KEK = bytes(range(32))


def test_every_label_gives_another_key() -> None:
    """No two purposes share a key, and none is the master key itself."""
    master = MasterKey(KEK)
    derived = {master.derive(label) for label in Label}

    assert len(derived | {KEK}) == len(Label) + 1
    assert {len(key) for key in derived} == {32}


def test_a_derived_key_never_changes() -> None:
    """What hangs on it is stored for years: this value is fixed."""
    assert MasterKey(KEK).derive(Label.PEPPER).hex() == (
        "94afb9fffa669d4972ddb3d2236f5f4d942d2cda860afe6f3941e1ad0bd6145a"
    )


def test_the_file_brings_back_the_key() -> None:
    """One line of text, safe to copy by hand."""
    master = MasterKey.generate()

    assert MasterKey.from_file(master.to_file()) == master
    assert MasterKey.from_file(b"\n " + master.to_file() + b" \r\n") == master
    assert master.to_file().isascii()
    assert master.to_file().endswith(b"=\n")


@pytest.mark.parametrize("content", [b"", b"\n", b"AAAA", bytes(32), b"!" * 44, b"A" * 44, b"A" * 64, b"\xff" * 44])
def test_a_file_with_anything_else_is_refused(content: bytes) -> None:
    """A damaged key stops the start instead of becoming another key."""
    with pytest.raises(ValueError, match="32 bytes"):
        MasterKey.from_file(content)


def test_the_check_tells_the_right_key_from_a_wrong_one() -> None:
    """The value kept at first start belongs to one master key."""
    kept = MasterKey(KEK).derive(Label.CHECK)

    assert MasterKey(KEK).is_the_one(kept)
    assert not MasterKey(bytes(32)).is_the_one(kept)


def test_a_key_never_shows_itself() -> None:
    """Neither in a log nor in a traceback."""
    assert KEK.hex() not in repr(MasterKey(KEK))
    assert repr(KEK) not in repr(MasterKey(KEK))


@given(st.binary(max_size=100))
def test_what_was_sealed_is_unsealed(plaintext: bytes) -> None:
    """And the same text never looks the same twice."""
    sealed = seal(KEK, plaintext, name="k1", purpose="access-token")

    assert unseal(KEK, sealed, name="k1", purpose="access-token") == plaintext
    assert sealed != seal(KEK, plaintext, name="k1", purpose="access-token")


@pytest.mark.parametrize(
    ("kek", "name", "purpose"),
    [(bytes(32), "k1", "access-token"), (KEK, "k2", "access-token"), (KEK, "k1", "checkpoint")],
)
def test_a_seal_opens_only_where_it_was_made(kek: bytes, name: str, purpose: str) -> None:
    """Another master key, another name or another purpose does not open it."""
    sealed = seal(KEK, b"private", name="k1", purpose="access-token")

    with pytest.raises(SealBroken):
        unseal(kek, sealed, name=name, purpose=purpose)


@given(st.integers(0, 34), st.integers(1, 255))
def test_changed_bytes_do_not_open(position: int, flip: int) -> None:
    """One bit anywhere is enough."""
    sealed = bytearray(seal(KEK, b"private", name="k1", purpose="access-token"))
    sealed[position] ^= flip

    with pytest.raises(SealBroken):
        unseal(KEK, bytes(sealed), name="k1", purpose="access-token")


@pytest.mark.parametrize("length", [0, 1, 12, 27])
def test_too_few_bytes_do_not_open(length: int) -> None:
    """A cut column is a broken seal, not a crash."""
    with pytest.raises(SealBroken):
        unseal(KEK, bytes(length), name="k1", purpose="access-token")
