"""The map of the contract names tests that exist, and forgets none of those beside it."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

MAP = Path(__file__).with_name("COVERAGE.md")
TESTS = MAP.parent.parent
ROW = re.compile(r"^\| (?P<sentence>(?!sentence ).+?) \| (?P<proof>.+) \|$", re.MULTILINE)
TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
SECTIONS = [
    "1. Conventions", "2. Authority", "3. TenantResolver", "4. Quotas", "5. Admission", "6. Backfills",
    "7. Command line and settings", "8. Audit", "9. Governance",
]  # fmt: skip


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def rows() -> list[tuple[str, str]]:
    return [
        (found["sentence"], found["proof"]) for found in ROW.finditer(MAP.read_text("utf-8")) if "---" not in found[0]
    ]


def missing(proof: str) -> Iterator[str]:
    for file, name in TEST.findall(proof):
        if not (TESTS / file).is_file() or name not in names_in(file):
            yield f"{file}::{name}"


def test_every_section_of_the_contract_is_walked() -> None:
    """In the contract's order, with a sentence or more in each."""
    text = MAP.read_text("utf-8")

    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert len(rows()) > 150


def test_every_sentence_is_proved_by_tests_that_exist() -> None:
    """Or says that its part of the product is yet to come."""
    for sentence, proof in rows():
        assert proof.startswith("later: ") or TEST.search(proof), sentence
        assert list(missing(proof)) == [], sentence


def test_every_contract_test_proves_a_sentence() -> None:
    """A test that no sentence needs is in the wrong place."""
    named = {(file, name) for _, proof in rows() for file, name in TEST.findall(proof)}
    ours = {
        (file.relative_to(TESTS).as_posix(), name)
        for file in MAP.parent.glob("test_*.py")
        if file.stem != Path(__file__).stem
        for name in names_in(file.relative_to(TESTS).as_posix())
        if name.startswith("test_")
    }

    assert ours - named == set()


def test_a_test_that_is_gone_is_missed() -> None:
    """The check can fail."""
    assert list(missing("`web/test_quotas.py::test_that_nobody_wrote`")) == [
        "web/test_quotas.py::test_that_nobody_wrote"
    ]
    assert list(missing("`web/no_such_file.py::test_it`")) == ["web/no_such_file.py::test_it"]
