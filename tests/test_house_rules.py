"""The house rules that no tool checks; each rule is shown to find a planted fault before it judges the project.

A rule is a function from a file to the sentences that say what is wrong with it.
"""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobengine.web.problems import PROBLEMS as ANSWERED

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
SERVICE = SOURCE / "jobengine"
TESTS = ROOT / "tests"
PROBLEMS = ROOT / "docs" / "problems.md"
DECISIONS = ROOT / "docs" / "adr"

MAX_MODULE_LINES = 400
MAX_BODY_LINES = 30
MAX_DECISION_LINES = 60
DECISION_PARTS = ["Context", "Decision", "Consequences", "Alternatives", "Enforced by"]
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "impl"}
BANNED_SUFFIXES = ("Impl", "Helper", "Helpers", "Utils")
WALL_CLOCKS = {"datetime.now", "datetime.utcnow", "datetime.today", "time.time", "time.time_ns"}
READERS_OF_THE_CLOCK = {"clock.py", "ids.py"}
# 500 is also a page size and 512 a number of bytes: they count only where the word "status" stands beside them.
STATUS_NUMBERS = {*range(400, 419), *range(421, 432), 451, *range(501, 509)}
STATUS_TABLE = "web/problems.py"
# Code that reads what another server answered, and gives no answer of its own.
READERS_OF_STATUS = ("cli/", "client", "worker/")
# The migrator creates roles and schemas, whose names no query parameter can carry.
SQL_IN_PYTHON = ("storage/migrations/", "storage/migrator.py")
SQL = re.compile(
    r"""\s*(?:select\s+(?:[\w.*"]+\s*[(,]|\d|.*\bfrom\b)|insert\s+into\s|update\s+[\w."]+\s+set\s|delete\s+from\s
    |with\s+(?:recursive\s+)?\w+\s+as\s)""",
    re.VERBOSE | re.DOTALL,
)
SUPPRESSION = re.compile(r"#\s*(noqa|type:\s*ignore|pyright:\s*ignore)")
SUPPRESSION_WITH_REASON = re.compile(r"#\s*(noqa: [A-Z]+\d+(, ?[A-Z]+\d+)*|pyright: ignore\[\w+(, ?\w+)*\])\W+\w+ \w+")
# What belongs to no tenant: the database's clock, and the one policy of the platform.
PLATFORM_QUERIES = {
    "now",
    "admission_look",
    "audit_plan_anew",
    "get_policy",
    "lock_policy",
    "set_policy",
    "policy_changes",
}
NOT_OURS = {"jobengine-data", "__pycache__", "node_modules", "build", "dist"}
# A broker may not be there; what needs it says so.
THE_ONE_THAT_SKIPS = "broker/conftest.py"
FOREIGN_WORDS = {
    "a package registry's host": re.compile(r"pypi\.org|pythonhosted\.org"),
    "a folder of one machine": re.compile(r"(?<![\w.~-])/(?:home|Users|root|work)/\w+"),
}

Rule = Callable[[str, str], Iterator[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def parsed(text: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(text))


def functions(text: str) -> Iterator[Function]:
    return (node for node in parsed(text) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def docstrings(tree: ast.Module) -> set[int]:
    owners = (node for node in ast.walk(tree) if isinstance(node, Function | ast.ClassDef | ast.Module))
    return {id(owner.body[0].value) for owner in owners if owner.body and isinstance(owner.body[0], ast.Expr)}


def modules_are_short(path: str, text: str) -> Iterator[str]:
    if (lines := len(text.splitlines())) > MAX_MODULE_LINES:
        yield f"{path}: {lines} lines"


def bodies_are_short(path: str, text: str) -> Iterator[str]:
    for function in functions(text):
        if (lines := body_lines(function)) > MAX_BODY_LINES:
            yield f"{path}:{function.lineno} {function.name}: {lines} lines"


def names_mean_something(path: str, text: str) -> Iterator[str]:
    if found := BANNED_NAMES & {part.removesuffix(".py") for part in Path(path).parts}:
        yield f"{path}: {found}"
    for node in parsed(text):
        if isinstance(node, ast.ClassDef) and node.name.endswith(BANNED_SUFFIXES):
            yield f"{path}:{node.lineno} {node.name}"


def sql_is_a_file(path: str, text: str) -> Iterator[str]:
    if path.startswith(SQL_IN_PYTHON):
        return
    tree = ast.parse(text)
    spoken = docstrings(tree)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in spoken
            and is_sql(node.value)
        ):
            yield f"{path}:{node.lineno} {node.value[:40]!r}"


def is_sql(text: str) -> bool:
    verb = re.match(r"\s*(\w+)", text)
    # A sentence may begin with Select or With; SQL is written in one case.
    return verb is not None and verb[1] in {verb[1].lower(), verb[1].upper()} and SQL.match(text.lower()) is not None


def the_clock_is_read_in_one_place(path: str, text: str) -> Iterator[str]:
    if path in READERS_OF_THE_CLOCK:
        return
    for node in parsed(text):
        if isinstance(node, ast.Attribute) and ".".join(ast.unparse(node).split(".")[-2:]) in WALL_CLOCKS:
            yield f"{path}:{node.lineno} {ast.unparse(node)}"


def status_numbers_stand_in_one_table(path: str, text: str) -> Iterator[str]:
    if path == STATUS_TABLE or path.startswith(READERS_OF_STATUS):
        return
    tree = ast.parse(text)
    # A keyword says what its number is: milliseconds=400 is no answer.
    told = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and "status" not in (node.arg or "")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in told and is_one_of(node, STATUS_NUMBERS):
            yield f"{path}:{node.lineno} {node.value}"
        if isinstance(node, ast.keyword) and "status" in (node.arg or "") and is_one_of(node.value, {*range(400, 600)}):
            yield f"{path}:{node.value.lineno} {ast.unparse(node)}"
        if isinstance(node, ast.Name | ast.Attribute) and re.search(r"\bHTTP_[45]\d\d_", ast.unparse(node)):
            yield f"{path}:{node.lineno} {ast.unparse(node)}"


def is_one_of(node: ast.expr, numbers: set[int]) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value in numbers


def public_names_have_a_promise(path: str, text: str) -> Iterator[str]:
    yield from missing_promises(path, ast.parse(text))


def missing_promises(path: str, owner: ast.Module | ast.ClassDef) -> Iterator[str]:
    for node in owner.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
        if ast.get_docstring(node) is None and not decorators & {"overload", "setter", "override"}:
            yield f"{path}:{node.lineno} {node.name}"
        if isinstance(node, ast.ClassDef):
            yield from missing_promises(path, node)


def a_suppression_says_why(path: str, text: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        bare = SUPPRESSION.search(token.string) and not SUPPRESSION_WITH_REASON.search(token.string)
        if token.type == tokenize.COMMENT and bare:
            yield f"{path}:{token.start[0]} {token.string}"


def a_test_states_a_condition(path: str, text: str) -> Iterator[str]:
    for function in functions(text):
        if not function.name.startswith("test_"):
            continue
        sentence = ast.get_docstring(function) or ""
        if not sentence.endswith((".", "?", "!")) or "\n\n" in sentence:
            yield f"{path}:{function.lineno} {function.name}: wants one sentence"
        if len(function.name.split("_")) < 4:
            yield f"{path}:{function.lineno} {function.name}: names no condition"


def a_test_neither_skips_nor_mocks(path: str, text: str) -> Iterator[str]:
    for node in parsed(text):
        if (
            path != THE_ONE_THAT_SKIPS
            and isinstance(node, ast.Attribute)
            and re.search(r"\b(pytest|mark)\.(skip|skipif|xfail)$", ast.unparse(node))
        ):
            yield f"{path}:{node.lineno} {ast.unparse(node)}"
        if isinstance(node, ast.Import | ast.ImportFrom) and "unittest.mock" in ast.unparse(node):
            yield f"{path}:{node.lineno} {ast.unparse(node)}"


def a_unit_test_never_sleeps(path: str, text: str) -> Iterator[str]:
    for node in parsed(text):
        if isinstance(node, ast.Call) and re.search(r"(^|\.)sleep$", ast.unparse(node.func)):
            yield f"{path}:{node.lineno} {ast.unparse(node)}"


def queries_keep_their_tenant(path: str, text: str) -> Iterator[str]:
    for block in re.split(r"^-- name: ", text, flags=re.MULTILINE)[1:]:
        name, _, rest = block.partition("\n")
        statement = "\n".join(line for line in rest.splitlines() if not line.lstrip().startswith("--"))
        if not rest.startswith("-- "):
            yield f"{path}: {name} promises nothing"
        if "tenant_id" not in statement and name not in PLATFORM_QUERIES and not name.startswith("system_"):
            yield f"{path}: {name} forgets tenant_id"


def a_decision_is_short_and_whole(path: str, text: str) -> Iterator[str]:
    if (lines := len(text.splitlines())) > MAX_DECISION_LINES:
        yield f"{path}: {lines} lines"
    if (parts := re.findall(r"^## (.+)$", text, re.MULTILINE)) != DECISION_PARTS:
        yield f"{path}: {parts}"


def the_project_names_no_place(path: str, text: str) -> Iterator[str]:
    for what, pattern in FOREIGN_WORDS.items():
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                yield f"{path}:{number} names {what}"


def problem_codes(text: str) -> Iterator[str]:
    for node in parsed(text):
        match node:
            case ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=str(code))):
                yield code
            case ast.AnnAssign(target=ast.Name(id="code"), value=ast.Constant(value=str(code))):
                yield code
            case ast.keyword(arg="code", value=ast.Constant(value=str(code))):
                yield code
            case _:
                pass


def documented_codes(text: str) -> set[str]:
    return set(re.findall(r"^\| `(\w+)` \|", text.partition("\n## Reserved")[0], re.MULTILINE))


def files(folder: Path, pattern: str) -> dict[str, str]:
    found = (file for file in sorted(folder.rglob(pattern)) if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_text("utf-8") for file in found}


def documents() -> dict[str, str]:
    texts: dict[str, str] = {}
    for file in sorted(ROOT.rglob("*")):
        parts = file.relative_to(ROOT).parts
        if NOT_OURS & set(parts) or any(part.startswith(".") and part != ".ci" for part in parts[:-1]):
            continue
        if file.is_file() and file.name != ".git" and file.suffix not in {".pyc", ".png", ".ico", ".woff2"}:
            texts["/".join(parts)] = file.read_text("utf-8", errors="replace")
    return texts


def faults(rule: Rule, texts: dict[str, str]) -> list[str]:
    return [fault for path, text in texts.items() for fault in rule(path, text)]


PLANTED: list[tuple[Rule, str, str]] = [
    (modules_are_short, "quota/model.py", "x = 1\n" * (MAX_MODULE_LINES + 1)),
    (bodies_are_short, "quota/model.py", "def f():\n" + "    x = 1\n" * (MAX_BODY_LINES + 1)),
    (names_mean_something, "quota/utils.py", ""),
    (names_mean_something, "quota/model.py", "class QuotaImpl: ..."),
    (sql_is_a_file, "web/quotas.py", "rows = run('SELECT limits FROM quotas')"),
    (sql_is_a_file, "storage/quota.py", "rows = run('update quotas set paused = true')"),
    (sql_is_a_file, "storage/quota.py", "rows = run(f'delete from {table}')"),
    (sql_is_a_file, "storage/quota.py", "rows = run('with gone as (select 1) select 2')"),
    (the_clock_is_read_in_one_place, "quota/model.py", "now = datetime.now(UTC)"),
    (the_clock_is_read_in_one_place, "quota/model.py", "now = datetime.datetime.utcnow()"),
    (the_clock_is_read_in_one_place, "web/app.py", "clock = time.time"),
    (status_numbers_stand_in_one_table, "web/quotas.py", "raise HTTPException(status_code=404)"),
    (status_numbers_stand_in_one_table, "web/quotas.py", "answer(status_code=500)"),
    (status_numbers_stand_in_one_table, "web/quotas.py", "STATUS = {'not_found': 404}"),
    (status_numbers_stand_in_one_table, "web/quotas.py", "answer(status=status_codes.HTTP_409_CONFLICT)"),
    (public_names_have_a_promise, "quota/model.py", "class Quota: ..."),
    (public_names_have_a_promise, "quota/model.py", "class _Quota: ...\nasync def adjust(): ..."),
    (public_names_have_a_promise, "quota/model.py", "class Quota:\n    'A quota.'\n    def adjust(self): ..."),
    (a_suppression_says_why, "quota/model.py", "x = 1  # noqa: S105"),
    (a_suppression_says_why, "quota/model.py", "x = 1  # noqa - a name, not a secret"),
    (a_suppression_says_why, "quota/model.py", "x = 1  # type: ignore[assignment] - the library says Any"),
    (a_test_states_a_condition, "unit/test_quota.py", "def test_a_raise_is_refused(): ..."),
    (a_test_states_a_condition, "unit/test_quota.py", "def test_raise():\n    'A raise is refused.'"),
    (a_test_neither_skips_nor_mocks, "unit/test_quota.py", "@pytest.mark.skipif(True)\ndef test_it(): ..."),
    (a_test_neither_skips_nor_mocks, "unit/test_quota.py", "from unittest.mock import Mock"),
    (a_unit_test_never_sleeps, "unit/test_quota.py", "asyncio.sleep(1)"),
    (queries_keep_their_tenant, "quota.sql", "-- name: get_quota\n-- One row.\nselect 1;\n"),
    (queries_keep_their_tenant, "quota.sql", "-- name: get_quota\nselect 1 where tenant_id = %(tenant_id)s;\n"),
    (queries_keep_their_tenant, "quota.sql", "-- name: get_quota\n-- Of tenant_id.\nselect 1;\n"),
    (a_decision_is_short_and_whole, "0001-store.md", "# Store\n\n## Context\n\n## Decision\n"),
    (the_project_names_no_place, "README.md", "see https://" + "pypi" + ".org"),
    (the_project_names_no_place, "README.md", "cd /home" + "/me"),
]


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_fault_is_found(rule: Rule, path: str, text: str) -> None:
    """Every rule can fail."""
    assert list(rule(path, text))


RULES: list[tuple[Rule, Path, str]] = [
    (modules_are_short, SOURCE, "*.py"),
    (modules_are_short, TESTS, "*.py"),
    (bodies_are_short, SOURCE, "*.py"),
    (bodies_are_short, TESTS, "*.py"),
    (names_mean_something, SOURCE, "*.py"),
    (names_mean_something, TESTS, "*.py"),
    (sql_is_a_file, SERVICE, "*.py"),
    (the_clock_is_read_in_one_place, SERVICE, "*.py"),
    (status_numbers_stand_in_one_table, SERVICE, "*.py"),
    (public_names_have_a_promise, SOURCE, "*.py"),
    (a_suppression_says_why, SOURCE, "*.py"),
    (a_suppression_says_why, TESTS, "*.py"),
    (a_test_states_a_condition, TESTS, "test_*.py"),
    (a_test_neither_skips_nor_mocks, TESTS, "*.py"),
    (a_unit_test_never_sleeps, TESTS / "unit", "*.py"),
    (a_decision_is_short_and_whole, DECISIONS, "[0-9]*.md"),
    (queries_keep_their_tenant, SERVICE / "storage" / "sql", "*.sql"),
]


@pytest.mark.parametrize(
    ("rule", "folder", "pattern"),
    RULES,
    ids=lambda value: getattr(value, "__name__", value.name if isinstance(value, Path) else ""),
)
def test_the_project_keeps_the_rule(rule: Rule, folder: Path, pattern: str) -> None:
    """No file breaks the rule, and there are files to judge."""
    texts = files(folder, pattern)

    assert texts
    assert faults(rule, texts) == []


def test_the_project_speaks_of_itself_alone() -> None:
    """No file names a registry's host, or a folder that exists on one machine only."""
    assert faults(the_project_names_no_place, documents()) == []


def test_a_planted_problem_code_is_seen() -> None:
    """Codes are read from class bodies and from keyword arguments, and rows from tables."""
    source = "class A:\n    code = 'one'\nclass B:\n    code: ClassVar[str] = 'two'\nraise Conflict('no', code='three')"
    table = "| code |\n|---|\n| `one` | 409 |\n\n## Reserved\n| `four` | 409 |\n"

    assert set(problem_codes(source)) == {"one", "two", "three"}
    assert documented_codes(table) == {"one"}


def test_every_problem_code_is_documented() -> None:
    """A code that the service can answer stands in docs/problems.md, above its reserved codes."""
    given = {code for text in files(SERVICE, "*.py").values() for code in problem_codes(text)}

    assert given - documented_codes(PROBLEMS.read_text("utf-8")) == set()


def test_the_documented_status_is_the_one_answered() -> None:
    """Codes and status numbers of docs/problems.md are those of web/problems.py; no reserved code is answered."""
    problems, _, _ = PROBLEMS.read_text("utf-8").partition("\n## The token endpoint")
    documented = {code: int(status) for code, status in re.findall(r"^\| `(\w+)` \| (\d+) \|", problems, re.MULTILINE)}

    assert documented == {code: status for code, (status, _) in ANSWERED.items()}
