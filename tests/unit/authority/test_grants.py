import re
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobengine.authority.clients import Client
from jobengine.authority.forms import Form
from jobengine.authority.grants import Grant, GrantPolicy, GrantRefused, decide_grant
from jobengine.authority.scopes import PRIVILEGED_SCOPES, Role, Scope, requirement

ADMIN = Client("jec_1", "ops", "nightly", ("acme",), (Role.ADMIN,), b"")
WIDE = replace(ADMIN, tenants=("acme", "globex"))
POLICY = GrantPolicy()
GRANT_TYPE = {"grant_type": "client_credentials"}
NOW = datetime.fromisoformat("2026-03-01T12:00:00Z")


def decide(client: Client = ADMIN, policy: GrantPolicy = POLICY, /, **form: str) -> Grant | GrantRefused:
    return decide_grant(client, Form(GRANT_TYPE | form), NOW, policy)


def test_a_plain_request_is_granted_in_the_only_tenant() -> None:
    """Without a reason the token lives up to a quarter of an hour."""
    granted = decide(scope="orch:read orch:audit")

    assert isinstance(granted, Grant)
    assert (granted.client_id, granted.owner, granted.tenant_id) == ("jec_1", "ops", "acme")
    assert granted.scope == "orch:read orch:audit"
    assert granted.roles == (Role.ADMIN,)
    assert dict(granted.intent.claims) == {}
    assert granted.life == timedelta(seconds=900)


def test_a_privileged_request_is_granted_with_its_reason_and_a_short_life() -> None:
    """A reason is bound for five minutes at most."""
    granted = decide(scope="orch:quota orch:read", quota_reason=" launch day ", quota_ticket="INC-1")

    assert isinstance(granted, Grant)
    assert dict(granted.intent.claims) == {"quota_reason": "launch day", "quota_ticket": "INC-1"}
    assert granted.life == timedelta(seconds=300)


def test_one_of_several_tenants_is_chosen_by_name() -> None:
    """The token is for that tenant alone."""
    granted = decide(WIDE, scope="orch:read", tenant="globex")

    assert isinstance(granted, Grant)
    assert granted.tenant_id == "globex"


@pytest.mark.parametrize(
    ("client", "form", "error", "cause", "tenant_id"),
    [
        (ADMIN, {"grant_type": "", "scope": "orch:read"}, "invalid_request", "grant_type_missing", "acme"),
        (ADMIN, {"grant_type": "password"}, "unsupported_grant_type", "grant_type_unsupported", "acme"),
        (ADMIN, {"grant_type": "CLIENT_CREDENTIALS"}, "unsupported_grant_type", "grant_type_unsupported", "acme"),
        (WIDE, {"scope": "orch:read"}, "invalid_request", "tenant_required", None),
        (WIDE, {"scope": "orch:read", "tenant": ""}, "invalid_request", "tenant_required", None),
        (WIDE, {"scope": "orch:read", "tenant": "other"}, "invalid_request", "tenant_not_allowed", None),
        (WIDE, {"scope": "orch:root", "tenant": "globex"}, "invalid_scope", "scope_unknown", "globex"),
        (ADMIN, {"scope": "orch:read", "tenant": "globex"}, "invalid_request", "tenant_not_allowed", "acme"),
        (ADMIN, {"scope": "orch:read", "tenant": "_platform"}, "invalid_request", "tenant_not_allowed", "acme"),
        (ADMIN, {}, "invalid_scope", "scope_missing", "acme"),
        (ADMIN, {"scope": ""}, "invalid_scope", "scope_missing", "acme"),
        (ADMIN, {"scope": " "}, "invalid_scope", "scope_malformed", "acme"),
        (ADMIN, {"scope": "orch:read\u00a0orch:quota"}, "invalid_scope", "scope_malformed", "acme"),
        (ADMIN, {"scope": "orch:read\torch:quota"}, "invalid_scope", "scope_malformed", "acme"),
        (ADMIN, {"scope": "orch:read  orch:audit"}, "invalid_scope", "scope_malformed", "acme"),
        (ADMIN, {"scope": "orch:read orch:root"}, "invalid_scope", "scope_unknown", "acme"),
        (ADMIN, {"scope": "ORCH:READ"}, "invalid_scope", "scope_unknown", "acme"),
        (ADMIN, {"scope": "orch"}, "invalid_scope", "scope_unknown", "acme"),
        (ADMIN, {"scope": "orch:quota:q1"}, "invalid_scope", "scope_unknown", "acme"),
        (ADMIN, {"scope": "orch:read orch:govern"}, "invalid_scope", "scope_not_allowed", "acme"),
        (replace(ADMIN, roles=()), {"scope": "orch:read"}, "invalid_scope", "scope_not_allowed", "acme"),
        (ADMIN, {"scope": "orch:quota"}, "invalid_request", "quota_reason:reason_missing", "acme"),
        (
            ADMIN,
            {"scope": "orch:quota", "quota_reason": "test"},
            "invalid_request",
            "quota_reason:reason_placeholder",
            "acme",
        ),
        (
            ADMIN,
            {"scope": "orch:read", "quota_ticket": "1"},
            "invalid_request",
            "quota_reason:ticket_without_reason",
            "acme",
        ),
        (replace(ADMIN, disabled_at=NOW), {"scope": "orch:read"}, "invalid_client", "client_disabled", "acme"),
    ],
)
def test_a_request_that_may_not_be_is_refused(
    client: Client, form: dict[str, str], error: str, cause: str, tenant_id: str | None
) -> None:
    """The caller gets the RFC's code and a sentence, the audit a stable cause and the log it belongs to."""
    refused = decide(client, **form)

    assert isinstance(refused, GrantRefused)
    assert (refused.error.error, refused.error.cause, refused.tenant_id) == (error, cause, tenant_id)
    assert re.fullmatch(r"[\x20-\x21\x23-\x5B\x5D-\x7E]+", refused.error.description)


def test_the_refusal_names_the_parameter_to_mend() -> None:
    """A client that reads only the description knows what to send."""
    refused = decide(scope="orch:quota")

    assert isinstance(refused, GrantRefused)
    assert refused.error.description == "quota_reason is required for orch:quota: say why the change is needed"


def test_the_operator_may_ask_for_tickets_and_shorter_lives() -> None:
    """Settings tighten the rules."""
    strict = GrantPolicy(True, timedelta(seconds=60), timedelta(seconds=30))
    refused = decide(ADMIN, strict, scope="orch:backfill", backfill_reason="lost shard")
    granted = decide(ADMIN, strict, scope="orch:backfill", backfill_reason="lost shard", backfill_ticket="INC-1")
    plain = decide(ADMIN, strict, scope="orch:read")

    assert isinstance(refused, GrantRefused)
    assert refused.error.cause == "backfill_ticket:ticket_missing"
    assert isinstance(granted, Grant)
    assert granted.life == timedelta(seconds=30)
    assert isinstance(plain, Grant)
    assert plain.life == timedelta(seconds=60)


@pytest.mark.parametrize("seconds", [0, -1, 901])
def test_no_setting_makes_plain_tokens_live_longer_than_promised(seconds: int) -> None:
    """The contract's limit is a limit."""
    with pytest.raises(ValueError, match="plain_life"):
        GrantPolicy(plain_life=timedelta(seconds=seconds))


@pytest.mark.parametrize("seconds", [0, -1, 301])
def test_no_setting_makes_privileged_tokens_live_longer_than_promised(seconds: int) -> None:
    """And the shorter one too."""
    with pytest.raises(ValueError, match="privileged_life"):
        GrantPolicy(privileged_life=timedelta(seconds=seconds))


ROLES = st.lists(st.sampled_from(Role), max_size=3, unique=True)
SPACES = st.sampled_from([" ", "\t", "\u00a0", "  ", "\u2003", "\n", ","])
TEXTS = st.sampled_from(["", "launch day", "test", "a\u202eb", "INC-1", "\u3164", "x" * 257])
PARAMETERS = [
    "quota_reason",
    "quota_ticket",
    "backfill_reason",
    "backfill_ticket",
    "operator_reason",
    "operator_ticket",
]


@given(
    roles=ROLES,
    scopes=st.lists(st.sampled_from([*Scope, "orch:root", ""]), max_size=4),
    space=SPACES,
    texts=st.dictionaries(st.sampled_from(PARAMETERS), TEXTS),
)
@settings(deadline=None)
def test_no_request_gets_a_privileged_scope_without_its_reason(
    roles: list[Role], scopes: list[str], space: str, texts: dict[str, str]
) -> None:
    """However scopes are written and whatever else is sent, each privileged one has a reason in the same token."""
    client = replace(ADMIN, roles=tuple(roles))
    granted = decide(client, scope=space.join(scopes), **texts)

    if not isinstance(granted, Grant):
        return
    for scope in PRIVILEGED_SCOPES & set(granted.scopes):
        asked = requirement(scope, backfill_ticket_required=False)
        assert asked is not None
        assert asked.family.reason in granted.intent.claims
    good = {"reason": {"launch day", "INC-1"}, "ticket": {"INC-1", "test"}}
    assert all(text in good[name.rpartition("_")[2]] for name, text in granted.intent.claims.items())
    assert granted.life <= timedelta(seconds=300 if granted.intent.claims else 900)
