"""Reasons and tickets: why a privileged token is asked for, in words that reach every audit entry it causes.

A reason that breaks a rule is refused, never cut, cleaned or dropped: the audit holds what the caller meant to say.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from jobengine.audit.act import PROPERTY_OF_CLAIM
from jobengine.authority.forms import Form
from jobengine.authority.scopes import Requirement, Scope, requirement
from jobengine.tenancy.model import Family

MAX_REASON_CODE_POINTS: Final = 256  # which is never more than 1,024 bytes of UTF-8, the other limit
MAX_TICKET_CHARACTERS: Final = 128

PLACEHOLDERS: Final = frozenset({".", "-", "test", "n/a", "na", "none", "asdf", "xxx", "todo", "reason"})
"""Texts that fill the box and say nothing; compared without regard to case."""

_INVISIBLE: Final = frozenset("\u115f\u1160\u3164\uffa0\u2800")
_BIDI_CONTROLS: Final = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
)
# Surrogates cannot come in through UTF-8, but a JSON claim can spell them, and no text can hold them.
_UNPRINTABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
_TICKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/#-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A reason or ticket in the form in which it is granted."""

    text: str


@dataclass(frozen=True, slots=True)
class IntentRefused:
    """A reason or ticket that will not do: a stable *code*, and a *message* that names the *parameter* to mend."""

    code: str
    parameter: str
    message: str


def check_reason(parameter: str, text: str) -> Accepted | IntentRefused:
    """Normalise *text* to NFC, trim ASCII spaces, and accept it if it can be read as a reason.

    >>> check_reason("quota_reason", "  launch day ")
    Accepted(text='launch day')
    >>> check_reason("quota_reason", "N/A").message
    'quota_reason must say why in words, not with a placeholder'
    """
    reason = unicodedata.normalize("NFC", text).strip(" ")
    if fault := _reason_fault(reason):
        code, demand = fault
        return IntentRefused(code, parameter, f"{parameter} {demand}")
    return Accepted(reason)


def _reason_fault(reason: str) -> tuple[str, str] | None:
    if not reason:
        return "reason_missing", "must not be empty"
    if len(reason) > MAX_REASON_CODE_POINTS:
        return "reason_too_long", f"must be at most {MAX_REASON_CODE_POINTS} characters long; it is never cut"
    if any(unicodedata.category(char) in _UNPRINTABLE for char in reason):
        return "reason_control", "must not hold control characters or line separators"
    if not _BIDI_CONTROLS.isdisjoint(reason):
        return "reason_bidi", "must not hold characters that turn the direction of writing"
    if reason.casefold() in PLACEHOLDERS:
        return "reason_placeholder", "must say why in words, not with a placeholder"
    if not any(_is_visible(char) for char in reason):
        return "reason_blank", "must hold a visible letter or digit"
    return None


def _is_visible(char: str) -> bool:
    return unicodedata.category(char)[0] in "LN" and char not in _INVISIBLE


def check_ticket(parameter: str, text: str) -> Accepted | IntentRefused:
    """Accept *text* if it can be the key of a ticket; a ticket is neither trimmed nor normalised.

    >>> check_ticket("quota_ticket", "INC-4711")
    Accepted(text='INC-4711')
    >>> check_ticket("quota_ticket", "see chat").code
    'ticket_malformed'
    """
    if len(text) > MAX_TICKET_CHARACTERS:
        message = f"{parameter} must be at most {MAX_TICKET_CHARACTERS} characters long; it is never cut"
        return IntentRefused("ticket_too_long", parameter, message)
    if _TICKET.fullmatch(text) is None:
        message = f"{parameter} must start with a letter or digit and go on with letters, digits or . _ : / # -"
        return IntentRefused("ticket_malformed", parameter, message)
    return Accepted(text)


@dataclass(frozen=True, slots=True)
class Intent:
    """The reasons and tickets of one token, by the names of their claims; empty for a token without privilege."""

    claims: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def read_intent(form: Form, scopes: Iterable[Scope], *, backfill_ticket_required: bool) -> Intent | IntentRefused:
    """Read the reasons and tickets that *scopes* ask for; those of a family nobody asked for stay out, unread.

    >>> read_intent(Form({"quota_reason": "launch day"}), [Scope.READ, Scope.QUOTA], backfill_ticket_required=False)
    Intent(claims=mappingproxy({'quota_reason': 'launch day'}))
    >>> read_intent(Form({}), [Scope.QUOTA], backfill_ticket_required=False).message
    'quota_reason is required for orch:quota: say why the change is needed'
    """
    for family in Family:
        if form.get(family.ticket) and not form.get(family.reason):
            message = f"{family.ticket} was given without {family.reason}"
            return IntentRefused("ticket_without_reason", family.reason, message)
    claims: dict[str, str] = {}
    for scope in scopes:
        asked = requirement(scope, backfill_ticket_required=backfill_ticket_required)
        if asked is not None:
            read = _read_family(form, scope, asked)
            if isinstance(read, IntentRefused):
                return read
            claims |= read
    return Intent(MappingProxyType(claims))


def _read_family(form: Form, scope: Scope, asked: Requirement) -> dict[str, str] | IntentRefused:
    family = asked.family
    reason, ticket = form.get(family.reason), form.get(family.ticket)
    if reason is None:
        message = f"{family.reason} is required for {scope}: say why the change is needed"
        return IntentRefused("reason_missing", family.reason, message)
    if ticket is None and asked.ticket_required:
        message = f"{family.ticket} is required for {scope}: name the ticket it belongs to"
        return IntentRefused("ticket_missing", family.ticket, message)
    claims: dict[str, str] = {}
    checks = [(family.reason, check_reason(family.reason, reason))]
    if ticket is not None:
        checks.append((family.ticket, check_ticket(family.ticket, ticket)))
    for name, answer in checks:
        match answer:
            case Accepted(text):
                claims[name] = text
            case IntentRefused():
                return answer
    return claims


def valid_intents(claims: Mapping[str, object]) -> Mapping[str, str]:
    """Return those reasons and tickets among *claims* that obey the rules; any other counts as absent.

    A claim must already stand in the form in which it would be granted, and a ticket needs its reason.

    >>> dict(valid_intents({"quota_reason": "launch day", "backfill_reason": "test", "backfill_ticket": "INC-1"}))
    {'quota_reason': 'launch day'}
    """
    valid: dict[str, str] = {}
    for family in Family:
        reason, ticket = claims.get(family.reason), claims.get(family.ticket)
        if not isinstance(reason, str) or check_reason(family.reason, reason) != Accepted(reason):
            continue
        valid[family.reason] = reason
        if isinstance(ticket, str) and check_ticket(family.ticket, ticket) == Accepted(ticket):
            valid[family.ticket] = ticket
    return MappingProxyType(valid)


def audit_properties(intents: Mapping[str, str]) -> dict[str, str]:
    """Return *intents* under the names of the properties of an audit entry.

    >>> audit_properties({"operator_reason": "stuck node", "operator_ticket": "INC-1"})
    {'request.reason': 'stuck node', 'request.ticket': 'INC-1'}
    """
    return {PROPERTY_OF_CLAIM[claim]: text for claim, text in intents.items() if claim in PROPERTY_OF_CLAIM}
