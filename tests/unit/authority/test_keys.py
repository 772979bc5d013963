import base64
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey

from jobengine.authority.grants import LONGEST_PLAIN_LIFE
from jobengine.authority.keys import (
    LONGEST_TOKEN_LIFE,
    RotationPlan,
    SigningKey,
    generate_checkpoint_key,
    generate_signing_key,
    jwks,
    rotate,
    seal_checkpoint_key,
    seal_signing_key,
    signing_key,
    unseal_checkpoint_key,
    unseal_signing_key,
    verification_keys,
)
from jobengine.authority.master_key import SealBroken
from jobengine.errors import Unavailable

KEK = bytes(range(32))
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PLAN = RotationPlan()
ONE_KEY = ECKey.generate_key("P-256")


def test_the_kid_is_the_thumbprint_of_the_public_key(key: SigningKey) -> None:
    """RFC 7638: SHA-256 over the required members in order."""
    jwk = key.public_jwk
    members = f'{{"crv":"P-256","kty":"EC","x":"{jwk["x"]}","y":"{jwk["y"]}"}}'

    assert key.kid == base64.urlsafe_b64encode(sha256(members.encode()).digest()).rstrip(b"=").decode()


def test_the_published_set_holds_public_members_only(key: SigningKey) -> None:
    """Nothing private is ever there to be published."""
    assert jwks([key], NOW) == {"keys": [key.public_jwk]}
    assert set(key.public_jwk) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert (key.public_jwk["kty"], key.public_jwk["use"], key.public_jwk["alg"]) == ("EC", "sig", "ES256")
    assert not any(public.is_private for public in verification_keys([key], NOW).values())


def test_a_key_never_shows_its_private_half(key: SigningKey) -> None:
    """A representation is for logs."""
    assert str(key.private["d"]) not in repr(key)
    assert "private" not in repr(key)


def test_a_sealed_signing_key_comes_back_whole(key: SigningKey) -> None:
    """Storage keeps the sealed half and the times."""
    back = unseal_signing_key(
        seal_signing_key(key, KEK),
        KEK,
        kid=key.kid,
        created_at=key.created_at,
        active_from=key.active_from,
        retire_at=None,
    )

    assert back == key
    assert back.private.as_der(private=True) == key.private.as_der(private=True)


def test_a_sealed_checkpoint_key_comes_back_whole() -> None:
    """The other algorithm, sealed the same way."""
    key = generate_checkpoint_key(NOW)
    back = unseal_checkpoint_key(
        seal_checkpoint_key(key, KEK), KEK, kid=key.kid, created_at=NOW, active_from=NOW, retire_at=None
    )

    assert back == key
    assert isinstance(back.private.public_key(), Ed25519PublicKey)
    assert back.private.private_bytes_raw() == key.private.private_bytes_raw()
    assert "private" not in repr(key)


def test_a_key_sealed_for_one_purpose_opens_for_no_other(key: SigningKey) -> None:
    """Swapping two rows of the database swaps no keys."""
    checkpoint = generate_checkpoint_key(NOW)
    times = {"created_at": NOW, "active_from": NOW, "retire_at": None}

    with pytest.raises(SealBroken):
        unseal_checkpoint_key(
            seal_signing_key(key, KEK), KEK, kid=key.kid, created_at=NOW, active_from=NOW, retire_at=None
        )
    with pytest.raises(SealBroken):
        unseal_signing_key(seal_checkpoint_key(checkpoint, KEK), KEK, kid=checkpoint.kid, **times)
    with pytest.raises(SealBroken):
        unseal_signing_key(seal_signing_key(key, KEK), KEK, kid="another", **times)
    with pytest.raises(SealBroken):
        unseal_signing_key(seal_signing_key(key, KEK), bytes(32), kid=key.kid, **times)


def test_the_first_key_signs_at_once() -> None:
    """Nobody holds an older set that lacks it."""
    (first,) = rotate((), NOW)

    assert first.active_from == NOW
    assert first.retire_at is None
    assert signing_key([first], NOW) == first


def test_the_next_key_is_published_before_it_signs() -> None:
    """Whoever refetches the set within the life of a token knows the key before the first token it signs."""
    old, new = rotate(rotate((), NOW), NOW + timedelta(days=30))
    rotated_at = NOW + timedelta(days=30)

    assert new.active_from - rotated_at >= LONGEST_PLAIN_LIFE
    assert {key["kid"] for key in jwks([old, new], rotated_at)["keys"]} == {old.kid, new.kid}
    assert signing_key([old, new], rotated_at).kid == old.kid
    assert signing_key([old, new], new.active_from - timedelta(microseconds=1)).kid == old.kid
    assert signing_key([old, new], new.active_from).kid == new.kid


def test_the_old_key_verifies_until_its_last_token_is_over() -> None:
    """And is then gone from both sets."""
    old, new = rotate(rotate((), NOW), NOW)
    last_token_over = new.active_from + LONGEST_TOKEN_LIFE

    assert old.kid in verification_keys([old, new], last_token_over)
    assert old.retire_at is not None
    assert old.retire_at > last_token_over
    assert set(verification_keys([old, new], old.retire_at)) == {new.kid}
    assert [key["kid"] for key in jwks([old, new], old.retire_at)["keys"]] == [new.kid]
    assert old.kid not in {key.kid for key in rotate([old, new], old.retire_at)}


@pytest.mark.parametrize("moment", [NOW - timedelta(seconds=1), NOW + timedelta(days=400)])
def test_no_key_signs_before_its_time_or_after_its_end(moment: datetime) -> None:
    """Where there is none, nothing is issued."""
    ended = SigningKey("k", ONE_KEY, NOW, NOW, retire_at=NOW + timedelta(days=1))

    with pytest.raises(Unavailable):
        signing_key([ended], moment)


@given(st.lists(st.integers(0, 3 * 86_400), min_size=1, max_size=8), st.lists(st.integers(0, 86_400), max_size=12))
@settings(deadline=None)
def test_every_token_outlives_no_key_however_often_keys_rotate(gaps: list[int], probes: list[int]) -> None:
    """At any moment one key signs, everybody has known it long enough, and it verifies its last token to the end."""
    keys: tuple[SigningKey, ...] = ()
    at = NOW
    for made, gap in enumerate(gaps, 1):
        at += timedelta(seconds=gap)

        def generate(created: datetime, active: datetime, kid: int = made) -> SigningKey:
            return SigningKey(f"key-{kid}", ONE_KEY, created, active)

        keys = rotate(keys, at, PLAN, generate)
        for probe in (0, *probes):
            moment = at + timedelta(seconds=probe)
            signer = signing_key(keys, moment)
            assert signer.retire_at is None or signer.retire_at >= moment + LONGEST_TOKEN_LIFE
            assert signer.kid in verification_keys(keys, moment + LONGEST_TOKEN_LIFE)
            assert signer.kid == "key-1" or moment >= signer.created_at + PLAN.publish_ahead
    assert len({key.kid for key in keys}) == len(keys)


def test_two_rotations_in_a_row_leave_one_signer() -> None:
    """A key replaced before it ever signed never signs."""
    first, second, third = rotate(rotate(rotate((), NOW), NOW), NOW + timedelta(seconds=1))

    assert signing_key([first, second, third], NOW + timedelta(minutes=5)).kid == first.kid
    assert signing_key([first, second, third], third.active_from).kid == third.kid
    assert third.retire_at is None


def test_generated_keys_differ_every_time() -> None:
    """Two keys never share a name or a secret."""
    one, other = generate_signing_key(NOW, NOW), generate_signing_key(NOW, NOW)

    assert one.kid != other.kid
    assert one.private["d"] != other.private["d"]
