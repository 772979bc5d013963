import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobengine.authority.forms import Form
from jobengine.authority.intent import (
    MAX_REASON_CODE_POINTS,
    PLACEHOLDERS,
    Accepted,
    Intent,
    IntentRefused,
    audit_properties,
    check_reason,
    check_ticket,
    read_intent,
    valid_intents,
)
from jobengine.authority.scopes import Scope

DESCRIPTION = re.compile(r"[\x20-\x21\x23-\x5B\x5D-\x7E]+")  # RFC 6749 section 5.2


@pytest.mark.parametrize(
    ("text", "granted"),
    [
        ("launch day", "launch day"),
        ("   launch   day   ", "launch   day"),
        ("7", "7"),
        ("é", "é"),
        ("e\u0301te\u0301", "été"),
        ("配额", "配额"),
        ("رفع الحصة", "رفع الحصة"),
        ("\U0001f680 go", "\U0001f680 go"),
        ("testing", "testing"),
        ("test 2", "test 2"),
        ("test\u00a0", "test\u00a0"),
        ('say "why" \\ 100%', 'say "why" \\ 100%'),
        ("a" * 256, "a" * 256),
        (" " * 300 + "a", "a"),
        ("\U0001d4d0" * 256, "\U0001d4d0" * 256),
        ("e\u0301" * 256, "é" * 256),
        ("\u3164a", "\u3164a"),
        ("½", "½"),
    ],
)
def test_a_reason_that_can_be_read_is_granted(text: str, granted: str) -> None:
    """Only the normal form and the trimmed spaces differ from what was sent."""
    assert check_reason("quota_reason", text) == Accepted(granted)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "reason_missing"),
        ("    ", "reason_missing"),
        ("a" * 257, "reason_too_long"),
        ("\U0001d4d0" * 257, "reason_too_long"),
        ("a\tb", "reason_control"),
        ("launch day\n", "reason_control"),
        ("\tlaunch", "reason_control"),
        ("a\x00b", "reason_control"),
        ("a\x7fb", "reason_control"),
        ("a\x85b", "reason_control"),
        ("a\u2028b", "reason_control"),
        ("a\u2029b", "reason_control"),
        ("a\ud800b", "reason_control"),
        *((f"a{char}b", "reason_bidi") for char in "\u061c\u200e\u200f\u202a\u202e\u2066\u2069"),
        ("\u115f", "reason_blank"),
        ("\u1160\u3164\uffa0\u2800", "reason_blank"),
        ("\u3164 \u2800", "reason_blank"),
        ("...", "reason_blank"),
        ("\U0001f680", "reason_blank"),
        ("\u0301", "reason_blank"),
        ("\u00a0", "reason_blank"),
        ("\u200b", "reason_blank"),
        *((text, "reason_placeholder") for text in sorted(PLACEHOLDERS)),
        (" TeSt ", "reason_placeholder"),
        ("N/A", "reason_placeholder"),
        ("te\u017ft", "reason_placeholder"),
    ],
)
def test_a_reason_that_says_nothing_or_hides_something_is_refused(text: str, code: str) -> None:
    """Each rule has its code, and the message names the parameter without repeating the text."""
    refused = check_reason("backfill_reason", text)

    assert isinstance(refused, IntentRefused)
    assert (refused.code, refused.parameter) == (code, "backfill_reason")
    assert refused.message.startswith("backfill_reason must ")
    assert DESCRIPTION.fullmatch(refused.message)


def test_the_placeholders_are_those_of_the_contract() -> None:
    """The list is closed: more of them would refuse honest reasons."""
    assert {".", "-", "test", "n/a", "na", "none", "asdf", "xxx", "todo", "reason"} == PLACEHOLDERS


def test_the_limit_in_characters_keeps_the_limit_in_bytes() -> None:
    """No reason of 256 code points is longer than 1,024 bytes."""
    longest = check_reason("quota_reason", chr(0x10FFFD) * (MAX_REASON_CODE_POINTS - 1) + "\U0001d4d0")

    assert isinstance(longest, Accepted)
    assert len(longest.text.encode()) == 1024


@given(st.text(max_size=300))
def test_a_granted_reason_is_granted_again_unchanged(text: str) -> None:
    """What stands in a token passes the same rules at its use; nothing else ever comes out of the check."""
    answer = check_reason("quota_reason", text)

    if isinstance(answer, Accepted):
        assert check_reason("quota_reason", answer.text) == answer
        assert unicodedata.normalize("NFC", text).strip(" ") == answer.text
    else:
        assert answer.message.startswith("quota_reason ")


@pytest.mark.parametrize("text", ["7", "INC-4711", "a" * 128, "https://tracker/browse/AB-1#c2", "a._:/#-"])
def test_a_ticket_key_is_granted_as_sent(text: str) -> None:
    """Keys and links of trackers fit the grammar."""
    assert check_ticket("quota_ticket", text) == Accepted(text)


@pytest.mark.parametrize(
    "text", ["", "-1", "#4711", "a b", " INC-1", "INC-1 ", "INC-1\n", "a" * 129, "é", "a?b=c", "\u0661", "a\x00"]
)
def test_any_other_ticket_is_refused(text: str) -> None:
    """A ticket is neither trimmed nor cut into shape."""
    refused = check_ticket("quota_ticket", text)

    assert isinstance(refused, IntentRefused)
    assert refused.message.startswith("quota_ticket must ")
    assert DESCRIPTION.fullmatch(refused.message)


def read(scopes: str, *, required: bool = False, **form: str) -> dict[str, str] | str:
    """Return the claims, or the code and parameter of the refusal."""
    match read_intent(Form(form), [Scope(scope) for scope in scopes.split()], backfill_ticket_required=required):
        case Intent(claims):
            return dict(claims)
        case IntentRefused(code, parameter, message):
            assert parameter in message
            assert DESCRIPTION.fullmatch(message)
            return f"{parameter}:{code}"


OPERATOR = {"operator_reason": "stuck node", "operator_ticket": "INC-1"}
QUOTA = {"quota_reason": "launch day"}
BACKFILL = {"backfill_reason": "lost shard", "backfill_ticket": "INC-2"}


@pytest.mark.parametrize(
    ("scopes", "form", "claims"),
    [
        ("orch:read orch:audit orch:admit orch:execute", {}, {}),
        ("orch:quota", QUOTA, QUOTA),
        ("orch:govern", QUOTA, QUOTA),
        ("orch:quota orch:govern", QUOTA, QUOTA),
        ("orch:operate", OPERATOR, OPERATOR),
        ("orch:backfill", BACKFILL, BACKFILL),
        ("orch:quota orch:backfill orch:operate", QUOTA | BACKFILL | OPERATOR, QUOTA | BACKFILL | OPERATOR),
        ("orch:quota", {"quota_reason": "  launch day ", "quota_ticket": "T1"}, QUOTA | {"quota_ticket": "T1"}),
        ("orch:quota", QUOTA | {"quota_ticket": ""}, QUOTA),
        ("orch:read", QUOTA | BACKFILL, {}),
        ("orch:quota", QUOTA | BACKFILL, QUOTA),
        ("orch:read", {"quota_reason": ".", "quota_ticket": "?"}, {}),
    ],
)
def test_a_token_carries_the_reasons_its_scopes_ask_for(
    scopes: str, form: dict[str, str], claims: dict[str, str]
) -> None:
    """What belongs to a scope nobody asked for stays out."""
    assert read(scopes, **form) == claims


@pytest.mark.parametrize(
    ("scopes", "form", "refusal"),
    [
        ("orch:quota", {}, "quota_reason:reason_missing"),
        ("orch:quota", {"quota_reason": ""}, "quota_reason:reason_missing"),
        ("orch:govern", {}, "quota_reason:reason_missing"),
        ("orch:govern", {"govern_reason": "launch"}, "quota_reason:reason_missing"),
        ("orch:quota", BACKFILL | OPERATOR, "quota_reason:reason_missing"),
        ("orch:backfill", QUOTA, "backfill_reason:reason_missing"),
        ("orch:quota orch:backfill", QUOTA, "backfill_reason:reason_missing"),
        ("orch:operate", {"operator_reason": "stuck node"}, "operator_ticket:ticket_missing"),
        ("orch:operate", {"operator_ticket": "INC-1"}, "operator_reason:ticket_without_reason"),
        ("orch:quota", {"quota_ticket": "INC-1"}, "quota_reason:ticket_without_reason"),
        ("orch:read", {"quota_ticket": "INC-1"}, "quota_reason:ticket_without_reason"),
        ("orch:quota", QUOTA | {"backfill_ticket": "INC-1"}, "backfill_reason:ticket_without_reason"),
        ("orch:quota", {"quota_reason": "test"}, "quota_reason:reason_placeholder"),
        ("orch:quota", QUOTA | {"quota_ticket": "see chat"}, "quota_ticket:ticket_malformed"),
        ("orch:backfill", {"backfill_reason": "x" * 257}, "backfill_reason:reason_too_long"),
    ],
)
def test_a_missing_or_bad_reason_or_ticket_ends_the_request(scopes: str, form: dict[str, str], refusal: str) -> None:
    """The refusal names the parameter to mend."""
    assert read(scopes, **form) == refusal


def test_the_backfill_ticket_is_required_by_setting_only() -> None:
    """The same request is granted or refused by the operator's choice."""
    assert read("orch:backfill", backfill_reason="lost shard") == {"backfill_reason": "lost shard"}
    assert read("orch:backfill", required=True, backfill_reason="lost shard") == "backfill_ticket:ticket_missing"
    assert read("orch:backfill", required=True, **BACKFILL) == BACKFILL


@pytest.mark.parametrize(
    ("claims", "valid"),
    [
        ({}, {}),
        (
            {"quota_reason": "launch", "quota_ticket": "T1", "sub": "c"},
            {"quota_reason": "launch", "quota_ticket": "T1"},
        ),
        ({"quota_reason": "test", "quota_ticket": "T1"}, {}),
        ({"quota_ticket": "T1"}, {}),
        ({"quota_reason": ["launch"]}, {}),
        ({"quota_reason": None, "backfill_reason": "lost shard"}, {"backfill_reason": "lost shard"}),
        ({"quota_reason": " launch "}, {}),
        ({"quota_reason": "e\u0301te"}, {}),
        ({"quota_reason": "launch", "quota_ticket": "see chat"}, {"quota_reason": "launch"}),
        ({"quota_reason": "launch", "quota_ticket": 7}, {"quota_reason": "launch"}),
    ],
)
def test_a_claim_that_would_not_be_granted_counts_as_absent(claims: dict[str, object], valid: dict[str, str]) -> None:
    """Another issuer's token cannot bring in what ours would refuse."""
    assert valid_intents(claims) == valid


def test_audit_properties_use_the_names_of_the_audit() -> None:
    """Operators' reasons are called the request's there."""
    assert audit_properties(QUOTA | BACKFILL | OPERATOR | {"other": "x"}) == {
        "quota.reason": "launch day",
        "backfill.reason": "lost shard",
        "backfill.ticket": "INC-2",
        "request.reason": "stuck node",
        "request.ticket": "INC-1",
    }
