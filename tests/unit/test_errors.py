"""The error tree."""

import inspect
import re

import pytest

from jobengine import errors
from jobengine.errors import Conflict, JobengineError, Malformed, NotFound, ValidationFailed
from jobengine.web.problems import PROBLEMS

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, JobengineError)]


def test_the_drawing_shows_every_error_under_its_parent() -> None:
    """Whoever reads the module's first lines knows what can be raised."""
    drawn = re.findall(r"^([│├└─ ]*)(\w+)(?:  |$)", errors.__doc__ or "", re.MULTILINE)
    path: list[str] = []
    parents: dict[str, str | None] = {}
    for indent, name in drawn:
        depth = len(indent) // 3
        path[depth:] = [name]
        parents[name] = path[depth - 1] if depth else None

    shown = {kind.__name__: kind.__base__.__name__ for kind in TREE if kind is not JobengineError and kind.__base__}
    assert {name: parent for name, parent in parents.items() if parent} == shown


@pytest.mark.parametrize("kind", TREE)
def test_an_error_has_a_code_that_is_answered(kind: type[JobengineError]) -> None:
    """`problems.py` has its status, so no error ever becomes a 500 by being forgotten."""
    assert kind.code in PROBLEMS


def test_an_error_may_say_a_narrower_code_and_more_members() -> None:
    """Its class stays what callers catch."""
    error = Conflict("there is one already", code="quota_exists", quota_id="q")

    assert (error.problem_code, Conflict.code, error.members) == ("quota_exists", "conflict", {"quota_id": "q"})
    assert str(error) == error.detail == "there is one already"


def test_a_wrong_value_names_its_path() -> None:
    """As `errors`, the way the contract shows it."""
    error = ValidationFailed("limits.burst", "must be a number")

    assert error.members == {"errors": [{"path": "limits.burst", "message": "must be a number"}]}
    assert isinstance(error, Malformed)
    assert not isinstance(error, NotFound)
