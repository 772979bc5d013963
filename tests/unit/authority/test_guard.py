import string
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.authority.forge import ABSENT, Forge, b64url, changed, unb64url
from tests.unit.authority.hostile import HEADERS, P256_ORDER, PAYLOADS, UNSIGNED

from jobengine.authority.guard import Guard, bearer_token
from jobengine.authority.keys import SigningKey, verification_keys
from jobengine.authority.scopes import Scope
from jobengine.errors import Unauthenticated

BATCH = "0198c0de-0000-7000-8000-000000000000:7"


def refusal(forge: Forge, token: str, now: datetime | None = None) -> str:
    """Return the sentence with which *token* is refused; it never holds a piece of the token."""
    with pytest.raises(Unauthenticated) as raised:
        forge.verify(token, now)
    assert raised.value.problem_code == "invalid_token"
    assert all(part not in raised.value.detail for part in token.split(".") if len(part) > 8)
    assert raised.value.__cause__ is None
    return raised.value.detail


def test_a_good_token_is_accepted(forge: Forge) -> None:
    """The corpus differs from this one in one thing each."""
    principal = forge.verify(forge.sign())

    assert (principal.client_id, principal.owner, principal.tenant_id) == ("jec_1", "jec_1", "acme")
    assert principal.scopes == {Scope.READ}
    assert principal.expires_at == forge.now + timedelta(seconds=300)


def test_the_high_s_twin_is_accepted_as_the_same_token(forge: Forge) -> None:
    """ECDSA signatures come in pairs, which is why tokens are revoked by jti and never by their text."""
    token = forge.sign()
    head, payload, signature = token.split(".")
    raw = unb64url(signature)
    twin = raw[:32] + (P256_ORDER - int.from_bytes(raw[32:])).to_bytes(32)

    assert forge.verify(f"{head}.{payload}.{b64url(twin)}") == forge.verify(token)


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_is_not_exactly_ours_is_refused(case: str, forge: Forge) -> None:
    """The token chooses neither algorithm, nor key, nor what else its header could ask for."""
    token = forge.sign(header=HEADERS[case](forge.header))

    assert refusal(forge, token) == "the access token is malformed, or was not signed here"


@pytest.mark.parametrize("case", PAYLOADS)
def test_a_payload_that_could_mean_something_else_is_refused(case: str, forge: Forge) -> None:
    """One text, one meaning: RFC 9068's claims in their types, for us, now."""
    assert refusal(forge, forge.sign(PAYLOADS[case](forge.claims))).startswith("the access token ")


@pytest.mark.parametrize("case", UNSIGNED)
def test_a_token_that_was_not_signed_here_is_refused(case: str, forge: Forge) -> None:
    """All of them look alike to the caller."""
    token = UNSIGNED[case](forge, *forge.sign().split("."))

    assert refusal(forge, token) == "the access token is malformed, or was not signed here"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"exp": 1}, "the access token has expired"),
        ({"iat": 4_000_000_000, "exp": 4_000_000_300}, "the access token is not valid yet"),
        ({"iss": "https://evil.example"}, "the access token comes from another issuer"),
        ({"aud": "other"}, "the access token is for another audience"),
        ({"jti": 7}, "the access token lacks a well-formed claim jti"),
        ({"jti": ABSENT}, "the access token lacks a well-formed claim jti"),
    ],
)
def test_the_holder_of_a_signed_token_learns_what_is_wrong(
    changes: dict[str, object], sentence: str, forge: Forge
) -> None:
    """A sentence for each fault, so that a clock or a setting can be mended."""
    assert refusal(forge, forge.sign(changed(forge.claims, **changes))) == sentence


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"aud": ["other", "jobengine"]}, "tenant_id", "acme"),
        ({"tenant": ABSENT}, "tenant_id", None),
        ({"scope": ABSENT}, "scopes", frozenset()),
        ({"roles": ABSENT}, "roles", ()),
        ({"scope": "orch:quota other:scope"}, "scopes", {"orch:quota", "other:scope"}),
        ({"scope": "orch:quota"}, "intents", {}),
        ({"quota_reason": "launch day"}, "intents", {"quota_reason": "launch day"}),
        ({"quota_reason": "test", "quota_ticket": "INC-1"}, "intents", {}),
        ({"quota_reason": 7}, "intents", {}),
        ({"owner": "ops team"}, "owner", "ops team"),
        ({"audit_leaf": "ab" * 32}, "audit_leaf", "ab" * 32),
        ({"batch": BATCH}, "batch", BATCH),
        ({"nbf": 0}, "client_id", "jec_1"),
        ({"unknown": {"deep": [1, None, True]}}, "client_id", "jec_1"),
        ({"jti": "a stranger's id"}, "token_id", "a stranger's id"),
    ],
)
def test_a_signed_token_of_another_shape_is_read(
    changes: dict[str, object], field: str, value: object, forge: Forge
) -> None:
    """What it lacks is refused where it is needed; a reason that breaks the rules counts as lacking."""
    assert getattr(forge.verify(forge.sign(changed(forge.claims, **changes))), field) == value


def test_the_leeway_is_for_the_start_alone(forge: Forge) -> None:
    """A clock that is ahead may start early, none may end late."""
    token, issued = forge.sign(), int(forge.now.timestamp())

    assert forge.verify(forge.sign(changed(forge.claims, iat=issued + 30)))
    assert forge.verify(token, forge.now + timedelta(seconds=299, microseconds=999_999))
    assert refusal(forge, token, forge.now + timedelta(seconds=300)) == "the access token has expired"


def test_a_retired_key_verifies_nothing(forge: Forge) -> None:
    """The guard knows the keys it was given, and no others."""
    key = forge.key
    ended = SigningKey(key.kid, key.private, key.created_at, key.active_from, retire_at=forge.now)

    with pytest.raises(Unauthenticated):
        Guard(forge.realm, verification_keys([ended], forge.now)).verify(forge.sign(), forge.now)


SEGMENT = string.ascii_letters + string.digits + "-_"


@given(position=st.integers(0, 10_000), replacement=st.sampled_from(SEGMENT + ".=+/ \n"))
@settings(deadline=None)
def test_no_altered_token_is_accepted(position: int, replacement: str, forge: Forge) -> None:
    """One character anywhere is enough."""
    token = forge.sign()
    at = position % len(token)
    if token[at] != replacement:
        refusal(forge, token[:at] + replacement + token[at + 1 :])


@given(text=st.one_of(st.text(max_size=100), st.lists(st.text(SEGMENT, max_size=60), max_size=4).map(".".join)))
@settings(deadline=None)
def test_any_text_is_refused_as_one_that_was_not_signed_here(text: str, forge: Forge) -> None:
    """No text makes the guard fail in any other way."""
    with pytest.raises(Unauthenticated, match="malformed"):
        forge.verify(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CLAIM = st.sampled_from(
    ["iss", "aud", "sub", "client_id", "iat", "exp", "nbf", "jti", "scope", "tenant", "roles", "owner", "batch"]
)


@given(changes=st.dictionaries(CLAIM, JSON, max_size=3))
@settings(deadline=None)
def test_any_signed_claims_are_read_or_refused(changes: dict[str, object], forge: Forge) -> None:
    """Whatever a claim holds, the guard gives a principal of the right types or its one error."""
    try:
        principal = forge.verify(forge.sign({**forge.claims, **changes}))
    except Unauthenticated:
        return

    assert all(isinstance(text, str) for text in (principal.client_id, principal.owner, principal.token_id))
    assert all(isinstance(text, str) for text in (*principal.scopes, *principal.roles))


@given(raw=st.binary(max_size=80))
@settings(deadline=None)
def test_any_signed_bytes_are_refused(raw: bytes, forge: Forge) -> None:
    """A payload that is no object of claims gets nowhere, signed or not."""
    with pytest.raises(Unauthenticated):
        forge.verify(forge.sign(raw))


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([], None),
        (["Bearer a.b.c"], "a.b.c"),
        (["bearer a.b.c"], "a.b.c"),
        (["BEARER   a.b.c"], "a.b.c"),
        (["Bearer abc-._~+/=="], "abc-._~+/=="),
        (["Basic YTpi"], None),
        (["Bearerer abc"], None),
        ([""], None),
        (["DPoP abc"], None),
    ],
)
def test_the_bearer_token_of_one_header_is_found(headers: list[str], token: str | None) -> None:
    """Another scheme is no token; the grammar is RFC 6750's."""
    assert bearer_token(headers) == token


@pytest.mark.parametrize(
    "headers",
    [
        ["Bearer"],
        ["Bearer "],
        ["Bearer a b"],
        ["Bearer a,b"],
        ["Bearer a\tb"],
        ["Bearer \u00e9"],
        ["Bearer a=b"],
        ["Bearer a\n"],
        ['Bearer "a"'],
        ["Bearer a", "Bearer a"],
        ["Bearer a", "Basic b"],
    ],
)
def test_a_bearer_header_without_one_token_is_refused(headers: list[str]) -> None:
    """Two headers, or something that is no token, are a bad token rather than none."""
    with pytest.raises(Unauthenticated) as raised:
        bearer_token(headers)

    assert raised.value.problem_code == "invalid_token"
