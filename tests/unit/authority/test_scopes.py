import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobengine.authority.scopes import (
    PRIVILEGED_SCOPES,
    Family,
    Requirement,
    Role,
    Scope,
    allowed_scopes,
    parse_scope,
    requirement,
)

ODD_SPACES = [
    "\u00a0",
    "\t",
    "\n",
    "\r",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x85",
    "\u2003",
    "\u2028",
    "\u3000",
    "\u200b",
    "\ufeff",
]


@pytest.mark.parametrize("space", [*ODD_SPACES, "  ", '"', "\\", "\x7f", "\x00", "é"])
def test_nothing_but_one_ascii_space_separates_scopes(space: str) -> None:
    """A text that another parser might split is refused, so that no scope can slip past its reason."""
    with pytest.raises(ValueError, match="RFC 6749"):
        parse_scope(f"orch:read{space}orch:quota")


@pytest.mark.parametrize("text", ["", " ", " orch:read", "orch:read ", "orch:read\n", "\norch:read", "orch:read\u00a0"])
def test_space_around_scopes_is_refused(text: str) -> None:
    """Leading, trailing and lonely spaces are outside the grammar."""
    with pytest.raises(ValueError, match="RFC 6749"):
        parse_scope(text)


def test_a_scope_named_twice_counts_once_in_order() -> None:
    """Scopes are a set that remembers how it was asked for."""
    assert parse_scope("orch:quota orch:read orch:quota") == ("orch:quota", "orch:read")


@pytest.mark.parametrize("text", ["!", "orch:quota,orch:read", "ORCH:QUOTA", "orch:quota;", "#[]~"])
def test_every_token_character_is_kept(text: str) -> None:
    """Well-formed tokens come out as they went in; whether they exist is another question."""
    assert parse_scope(text) == (text,)


@given(st.text(max_size=40))
def test_what_is_accepted_holds_only_token_characters(text: str) -> None:
    """Whatever the text, an accepted one is its tokens between single spaces, and no token can be split again."""
    try:
        tokens = parse_scope(text)
    except ValueError:
        return

    assert set(text.split(" ")) == set(tokens)
    assert all(token.isascii() and token.isprintable() and token.split() == [token] for token in tokens)


@pytest.mark.parametrize(
    ("role", "scopes"),
    [
        (Role.VIEWER, {"orch:read"}),
        (Role.OPERATOR, {"orch:read", "orch:operate"}),
        (Role.ADMIN, {"orch:read", "orch:operate", "orch:quota", "orch:backfill", "orch:audit"}),
        (Role.AUDITOR, {"orch:audit"}),
        (Role.WORKER, {"orch:admit", "orch:execute"}),
        (Role.GOVERNOR, {"orch:read", "orch:govern"}),
    ],
)
def test_a_role_allows_its_scopes_and_no_other(role: Role, scopes: set[str]) -> None:
    """The table of the contract, row by row."""
    assert allowed_scopes([role]) == scopes


def test_no_role_allows_nothing() -> None:
    """A client without roles gets no scope."""
    assert allowed_scopes([]) == frozenset()


def test_the_privileged_scopes_are_a_closed_list() -> None:
    """Exactly these four ask for a reason."""
    assert sorted(PRIVILEGED_SCOPES) == ["orch:backfill", "orch:govern", "orch:operate", "orch:quota"]


@pytest.mark.parametrize("setting", [False, True])
def test_only_the_backfill_ticket_depends_on_the_setting(setting: bool) -> None:
    """Operators always name a ticket, quota changes never must."""

    def ask(scope: Scope) -> Requirement | None:
        return requirement(scope, backfill_ticket_required=setting)

    assert ask(Scope.OPERATE) == Requirement(Family.OPERATE, ticket_required=True)
    assert ask(Scope.QUOTA) == ask(Scope.GOVERN) == Requirement(Family.QUOTA, ticket_required=False)
    assert ask(Scope.BACKFILL) == Requirement(Family.BACKFILL, ticket_required=setting)
