import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from joserfc import jws

from jobengine.authority.grants import Grant
from jobengine.authority.guard import MAX_TOKEN_CHARACTERS, Guard
from jobengine.authority.intent import Intent
from jobengine.authority.keys import LONGEST_TOKEN_LIFE, SigningKey
from jobengine.authority.scopes import Role, Scope
from jobengine.authority.tokens import EMBEDDED_WORKER, AccessToken, BatchAttempt, Realm, mint, mint_for_batch

LEAF = "ab" * 32
ID = "0198c0de-0000-7000-8000-000000000000"
PLAIN = Grant("jec_1", "ops", "acme", (Scope.READ, Scope.AUDIT), (Role.ADMIN,), Intent(), timedelta(seconds=900))
QUOTA = replace(
    PLAIN,
    scopes=(Scope.QUOTA,),
    intent=Intent({"quota_reason": 'launch "day" é \U0001f680', "quota_ticket": "INC-1"}),
    life=timedelta(seconds=300),
)


def parts(token: AccessToken) -> tuple[dict[str, object], dict[str, object]]:
    read = jws.extract_compact(token.text.encode())
    return read.headers(), json.loads(read.payload)


def test_a_token_says_what_was_granted(realm: Realm, key: SigningKey, now: datetime) -> None:
    """The claims of RFC 9068 and those of the contract, and no others."""
    token = mint(PLAIN, realm, key, now, token_id=ID, audit_leaf=None)
    header, payload = parts(token)

    assert header == {"alg": "ES256", "typ": "at+jwt", "kid": key.kid}
    assert payload == token.claims
    assert payload == {
        "iss": "https://jobs.example",
        "aud": "jobengine",
        "sub": "jec_1",
        "client_id": "jec_1",
        "owner": "ops",
        "iat": int(now.timestamp()),
        "exp": int(now.timestamp()) + 900,
        "jti": ID,
        "scope": "orch:read orch:audit",
        "tenant": "acme",
        "roles": ["Orch.Admin"],
    }


def test_a_privileged_token_carries_its_intent_and_the_leaf_of_its_grant(
    realm: Realm, key: SigningKey, now: datetime
) -> None:
    """Exactly as granted, for five minutes."""
    token = mint(QUOTA, realm, key, now, token_id=ID, audit_leaf=LEAF)
    _, payload = parts(token)

    assert payload["quota_reason"] == 'launch "day" é \U0001f680'
    assert payload["quota_ticket"] == "INC-1"
    assert payload["audit_leaf"] == LEAF
    assert token.expires_in == 300


def test_no_reason_is_signed_without_the_leaf_of_its_grant(realm: Realm, key: SigningKey, now: datetime) -> None:
    """A signature that commits to no record proves nothing."""
    with pytest.raises(ValueError, match="leaf"):
        mint(QUOTA, realm, key, now, token_id=ID, audit_leaf=None)


def test_a_plain_token_carries_no_leaf(realm: Realm, key: SigningKey, now: datetime) -> None:
    """The leaf belongs to the reason."""
    assert "audit_leaf" not in mint(PLAIN, realm, key, now, token_id=ID, audit_leaf=LEAF).claims


def test_a_token_never_shows_its_text(realm: Realm, key: SigningKey, now: datetime) -> None:
    """A representation is for logs."""
    token = mint(QUOTA, realm, key, now, token_id=ID, audit_leaf=LEAF)

    assert token.text not in repr(token)
    assert "launch" not in repr(token)


def test_the_guard_reads_back_what_was_minted(realm: Realm, key: SigningKey, guard: Guard, now: datetime) -> None:
    """From grant to principal nothing is lost, in the same second and in the last one."""
    now = now.replace(microsecond=999_999)
    token = mint(QUOTA, realm, key, now, token_id=ID, audit_leaf=LEAF)
    principal = guard.verify(token.text, now)

    assert (principal.client_id, principal.owner, principal.tenant_id) == ("jec_1", "ops", "acme")
    assert (principal.scopes, principal.roles) == ({"orch:quota"}, ("Orch.Admin",))
    assert (principal.token_id, principal.audit_leaf, principal.batch) == (ID, LEAF, None)
    assert principal.intents == QUOTA.intent.claims
    assert principal.expires_at == token.expires_at
    assert guard.verify(token.text, token.expires_at - timedelta(microseconds=1)) == principal


def test_the_longest_reasons_fit_into_a_token_the_guard_reads(
    realm: Realm, key: SigningKey, guard: Guard, now: datetime
) -> None:
    """No combination that is granted can be too large to be used."""
    claims = {
        f"{family}_{part}": text
        for family in ("quota", "backfill", "operator")
        for part, text in (("reason", "\U0001d4d0" * 256), ("ticket", "T" * 128))
    }
    widest = replace(
        QUOTA,
        owner="\U0001d4d0" * 200,
        tenant_id="t" * 63,
        scopes=tuple(Scope),
        roles=tuple(Role),
        intent=Intent(claims),
    )
    token = mint(widest, realm, key, now, token_id=ID, audit_leaf=LEAF)

    assert len(token.text) < MAX_TOKEN_CHARACTERS
    assert guard.verify(token.text, now).intents == claims


def test_a_batch_token_is_bound_to_its_attempt(realm: Realm, key: SigningKey, guard: Guard, now: datetime) -> None:
    """It carries one scope, one tenant and one attempt."""
    attempt = BatchAttempt("acme", ID, 7)
    token = mint_for_batch(attempt, realm, key, now, token_id=ID, life=timedelta(hours=2))
    principal = guard.verify(token.text, now + timedelta(hours=1))

    assert principal.client_id == EMBEDDED_WORKER
    assert (principal.tenant_id, principal.scopes) == ("acme", {"orch:execute"})
    assert principal.batch == f"{ID}:7"
    assert principal.may_work_on(ID, 7)
    assert not principal.may_work_on(ID, 8)


def test_no_batch_token_outlives_the_keys(realm: Realm, key: SigningKey, now: datetime) -> None:
    """A rotation waits for the longest life there is, so that there must be one."""
    with pytest.raises(ValueError, match="longer"):
        mint_for_batch(
            BatchAttempt("acme", ID, 7),
            realm,
            key,
            now,
            token_id=ID,
            life=LONGEST_TOKEN_LIFE + timedelta(seconds=1),
        )
