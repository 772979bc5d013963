import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from jobengine.authority.clients import (
    Authenticated,
    NotAuthenticated,
    authenticate,
    generate_credentials,
    hash_secret,
    new_client,
)
from jobengine.authority.scopes import Role
from jobengine.errors import ValidationFailed

PEPPER = bytes(range(32))


def test_ids_and_secrets_are_generated_in_their_alphabet() -> None:
    """They need no encoding anywhere, never repeat, and the secret holds 256 random bits."""
    made = [generate_credentials() for _ in range(50)]

    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", text) for pair in made for text in pair)
    assert all(text[0].isalnum() for pair in made for text in pair)
    assert len({text for pair in made for text in pair}) == 100
    assert all(len(secret) == len("jes_") + 43 for _, secret in made)


def test_a_new_client_keeps_no_secret() -> None:
    """The secret is beside the client, once, and its hash alone inside."""
    made = new_client("nightly", tenants=["acme", "acme", "b"], roles=["Orch.Admin"], pepper=PEPPER, owner="ops team")

    assert made.client.secret_hash == hash_secret(made.secret, PEPPER)
    assert (made.client.owner, made.client.tenants, made.client.roles) == ("ops team", ("acme", "b"), (Role.ADMIN,))
    assert made.secret not in repr(made)
    assert made.client.secret_hash.hex() not in repr(made) + repr(made.client.secret_hash.hex)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("name", {"name": ""}),
        ("name", {"name": "x" * 201}),
        ("name", {"name": "a\nb"}),
        ("name", {"name": " a"}),
        ("owner", {"owner": ""}),
        ("owner", {"owner": "a\u202eb"}),
        ("tenants", {"tenants": []}),
        ("tenants", {"tenants": ["acme", "_platform"]}),
        ("roles", {"roles": []}),
        ("roles", {"roles": ["Orch.Viewer", "Orch.Root"]}),
        ("roles", {"roles": ["viewer"]}),
    ],
)
def test_a_client_that_cannot_be_is_refused(path: str, change: dict[str, object]) -> None:
    """The error names what is wrong."""
    fields: dict[str, object] = {"name": "nightly", "tenants": ["acme"], "roles": ["Orch.Viewer"], "pepper": PEPPER}

    with pytest.raises(ValidationFailed) as raised:
        new_client(**(fields | change))  # pyright: ignore[reportArgumentType] - the table is untyped

    assert raised.value.members["errors"][0]["path"] == path  # pyright: ignore[reportIndexIssue] - as above


def test_the_right_secret_authenticates() -> None:
    """And nothing else about the client matters for it."""
    made = new_client("nightly", tenants=["acme"], roles=["Orch.Viewer"], pepper=PEPPER)

    assert authenticate(made.client, made.secret, PEPPER) == Authenticated(made.client)


def test_everybody_else_is_refused_with_a_cause_for_the_audit() -> None:
    """Unknown, wrong and disabled differ in the audit alone; a wrong secret does not tell that a client is disabled."""
    made = new_client("nightly", tenants=["acme"], roles=["Orch.Viewer"], pepper=PEPPER)
    disabled = replace(made.client, disabled_at=datetime(2026, 1, 1, tzinfo=UTC))

    assert authenticate(None, made.secret, PEPPER) == NotAuthenticated("client_unknown")
    assert authenticate(made.client, f"{made.secret}x", PEPPER) == NotAuthenticated("secret_wrong")
    assert authenticate(made.client, made.secret, bytes(32)) == NotAuthenticated("secret_wrong")
    assert authenticate(disabled, made.secret, PEPPER) == NotAuthenticated("client_disabled")
    assert authenticate(disabled, "jes_guess", PEPPER) == NotAuthenticated("secret_wrong")


def test_no_secret_opens_an_unknown_client() -> None:
    """The hash that stands in for a missing one belongs to no secret a caller could know."""
    assert authenticate(None, "", PEPPER) == NotAuthenticated("client_unknown")
