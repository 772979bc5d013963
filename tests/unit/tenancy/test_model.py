from datetime import UTC, datetime

import pytest

from jobengine.tenancy.model import PLATFORM, Principal, Purpose, is_tenant_id

BATCH_ID = "0198c0de-0000-7000-8000-000000000000"


def principal(*, scopes: frozenset[str] = frozenset(), batch: str | None = None, **intents: str) -> Principal:
    return Principal(
        client_id="jec_1",
        owner="ops",
        tenant_id="acme",
        scopes=scopes,
        roles=(),
        token_id="t",
        intents=intents,
        expires_at=datetime(2026, 1, 1, tzinfo=UTC),
        batch=batch,
    )


@pytest.mark.parametrize("text", ["a", "0", "acme", "a-", "a" * 63, "9-lives"])
def test_lower_case_letters_digits_and_dashes_are_a_tenant_id(text: str) -> None:
    """Every text of the grammar is a tenant id."""
    assert is_tenant_id(text)


@pytest.mark.parametrize(
    "text", ["", "-a", "A", "a" * 64, "a_b", "a.b", "a b", "a\n", "\u0661", "é", "a/b", "a%", PLATFORM, "a,b"]
)
def test_anything_else_is_no_tenant_id(text: str) -> None:
    """Neither other characters, nor other lengths, nor the platform's own key can name a tenant."""
    assert not is_tenant_id(text)


@pytest.mark.parametrize("scope", ["orch:read", "orch:quota", "orch:audit", "orch:govern"])
def test_govern_is_accepted_in_place_of(scope: str) -> None:
    """A governor may do what read, quota and audit allow."""
    assert principal(scopes=frozenset({"orch:govern"})).has(scope)


@pytest.mark.parametrize("scope", ["orch:operate", "orch:backfill", "orch:admit", "orch:execute", "", "orch:"])
def test_govern_is_not_accepted_in_place_of(scope: str) -> None:
    """A governor may not do anything else."""
    assert not principal(scopes=frozenset({"orch:govern"})).has(scope)


def test_other_scopes_stand_for_themselves_only() -> None:
    """Changing quotas does not imply reading them."""
    holder = principal(scopes=frozenset({"orch:quota"}))

    assert holder.has("orch:quota")
    assert not holder.has("orch:read")
    assert not holder.has("orch:govern")


def test_purposes_are_kept_apart_by_family() -> None:
    """Each family's reason and ticket are found under its own name, and nowhere else."""
    holder = principal(quota_reason="launch", quota_ticket="INC-1", operator_reason="stuck")

    assert holder.quota_purpose == Purpose("launch", "INC-1")
    assert holder.operator_purpose == Purpose("stuck", None)
    assert holder.backfill_purpose is None


def test_a_token_bound_to_an_attempt_speaks_for_no_other() -> None:
    """Neither another batch nor an older or newer attempt at the same one is covered."""
    bound = principal(batch=f"{BATCH_ID}:7")

    assert bound.may_work_on(BATCH_ID, 7)
    assert not bound.may_work_on(BATCH_ID, 8)
    assert not bound.may_work_on(BATCH_ID.replace("0198", "0199"), 7)


def test_a_token_without_an_attempt_may_work_on_any() -> None:
    """A worker's own token is not bound; the lease decides."""
    assert principal().may_work_on(BATCH_ID, 7)
