from datetime import UTC, datetime

import pytest

from jobengine.errors import Malformed, TenantMismatch
from jobengine.tenancy.model import Principal
from jobengine.tenancy.resolver import Resolved, TenantResolver


def resolve(headers: list[str], *scopes: str, tenant_id: str | None = "acme") -> Resolved:
    later = datetime(2026, 1, 1, tzinfo=UTC)
    holder = Principal("jec_1", "ops", tenant_id, frozenset(scopes), (), "t", {}, later)
    return TenantResolver().resolve(holder, headers)


@pytest.mark.parametrize("headers", [[], ["acme"]])
@pytest.mark.parametrize("scope", ["orch:quota", "orch:govern"])
def test_the_tenant_is_the_one_of_the_token(headers: list[str], scope: str) -> None:
    """No header, or one that repeats the token's tenant, changes nothing."""
    assert resolve(headers, scope) == Resolved("acme", selected=False)


@pytest.mark.parametrize("scope", ["orch:read", "orch:quota", "orch:audit", "orch:operate", ""])
def test_a_header_cannot_widen(scope: str) -> None:
    """Naming another tenant is refused, whether or not it exists."""
    with pytest.raises(TenantMismatch) as raised:
        resolve(["globex"], scope)

    assert raised.value.problem_code == "tenant_mismatch"
    assert "globex" not in raised.value.detail


def test_govern_selects_another_tenant_that_the_caller_must_look_up() -> None:
    """A governor may act anywhere, and the answer says that nobody has checked yet whether the tenant exists."""
    assert resolve(["globex"], "orch:govern") == Resolved("globex", selected=True)


@pytest.mark.parametrize("headers", [["acme", "acme"], ["acme", "globex"], ["globex", "acme"], ["", ""]])
@pytest.mark.parametrize("scope", ["orch:quota", "orch:govern"])
def test_two_headers_are_refused_even_if_they_agree(headers: list[str], scope: str) -> None:
    """Sent twice, under one spelling or under both, is a request nobody can be sure about."""
    with pytest.raises(Malformed) as raised:
        resolve(headers, scope)

    assert raised.value.problem_code == "tenant_invalid"


@pytest.mark.parametrize("header", ["", " acme", "Acme", "acme,globex", "_platform", "a" * 64, "acme\x00", "../acme"])
@pytest.mark.parametrize("scope", ["orch:quota", "orch:govern"])
def test_a_malformed_header_is_refused(header: str, scope: str) -> None:
    """What cannot be a tenant's id selects nothing, not even for a governor."""
    with pytest.raises(Malformed) as raised:
        resolve([header], scope)

    assert raised.value.problem_code == "tenant_invalid"


@pytest.mark.parametrize("headers", [[], ["acme"]])
@pytest.mark.parametrize("scope", ["orch:quota", "orch:govern"])
def test_a_token_without_a_tenant_gets_none_from_a_header(headers: list[str], scope: str) -> None:
    """A header narrows what the token says; where it says nothing there is nothing to narrow."""
    with pytest.raises(Malformed) as raised:
        resolve(headers, scope, tenant_id=None)

    assert raised.value.problem_code == "tenant_required"
