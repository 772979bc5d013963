"""The OpenAPI document, which others generate clients from."""

from collections.abc import Iterator
from typing import Any

import pytest

from jobengine.authority.scopes import Scope
from jobengine.web.app import make_app
from jobengine.web.openapi import document
from jobengine.web.problems import PROBLEMS


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """The document of the whole application, which needs nobody to serve it."""

    def never() -> Any:
        raise AssertionError("nothing is opened to describe the routes")

    return document(make_app(never))


def operations(described: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every operation of the API below its prefix."""
    for path, item in described["paths"].items():
        for method, operation in item.items():
            if path.startswith("/api/v1/"):
                yield f"{method} {path}", operation


def references(value: Any) -> Iterator[str]:
    """Every reference in the document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for member in value.values():
            yield from references(member)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_it_is_openapi_3_1(described: dict[str, Any]) -> None:
    """The contract fixes the version."""
    assert described["openapi"].startswith("3.1")


def test_every_operation_names_a_scope_that_exists(described: dict[str, Any]) -> None:
    """A route without a scope would be closed to everybody; one with a wrong one would lie."""
    known = {scope.value for scope in Scope}

    for name, operation in operations(described):
        scopes = [scope for way in operation["security"] for scope in way["oauth2"]]
        assert scopes, name
        assert set(scopes) <= known, name


def test_every_operation_tells_every_problem_status(described: dict[str, Any]) -> None:
    """No answer of the API has a status that the document does not know."""
    statuses = {str(status) for status, _ in PROBLEMS.values()}

    for name, operation in operations(described):
        assert statuses <= operation["responses"].keys(), name


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    """A generator stops at the first name that is not there."""
    known = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}

    assert set(references(described)) <= known


def test_operation_ids_are_unique(described: dict[str, Any]) -> None:
    """Clients name their functions by them."""
    ids = [operation["operationId"] for _, operation in operations(described)]

    assert len(ids) == len(set(ids))


def test_an_answer_without_a_body_shows_none(described: dict[str, Any]) -> None:
    """204 has no content, whatever the framework thinks of it."""
    for name, operation in operations(described):
        assert "content" not in operation["responses"].get("204", {}), name


def test_bodies_take_no_other_members_than_they_show(described: dict[str, Any]) -> None:
    """An unknown field is refused, so that every object of a request is closed."""
    for schema in ("NewQuota", "LimitsIn", "SomeLimits", "NewAdmission", "NewBackfill", "WindowIn", "PolicyChange"):
        assert described["components"]["schemas"][schema]["additionalProperties"] is False, schema


def test_patterns_are_those_of_json_schema(described: dict[str, Any]) -> None:
    """ECMA-262 knows no end of a text but ``$``."""
    assert "\\Z" not in str(described)


def test_every_link_leads_to_an_operation_that_takes_it(described: dict[str, Any]) -> None:
    """By its id, with all of its path parameters."""
    known = {operation["operationId"]: operation for _, operation in operations(described)}
    links = [
        link
        for _, operation in operations(described)
        for answer in operation["responses"].values()
        for link in answer.get("links", {}).values()
    ]

    assert len(links) > 20
    for link in links:
        taken = known[link["operationId"]]["parameters"]
        assert link["parameters"].keys() == {found["name"] for found in taken if found["in"] == "path"}
