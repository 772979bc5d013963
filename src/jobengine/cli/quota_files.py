"""Quotas as a TOML file: read strictly, written so that a diff of two files reads well."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, cast

from jobengine.cli.exits import CommandFailed, Exit
from jobengine.ids import JOB_TYPE
from jobengine.quota.model import LIMIT_NAMES, Number

FORMAT: Final = 1
MAX_BYTES: Final = 4 * 2**20
MAX_COUNT: Final = 10**12
MAX_RATE: Final = 10**9
_DECIMALS: Final = 6
_WHOLE: Final = "whole_tenant"
_TABLES: Final = "job_types"
_KEY: Final = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)\s*=""")

SomeLimits = Mapping[str, Number]


@dataclass(frozen=True, slots=True)
class QuotaFile:
    """What a file says: some or all limits for each job type of one tenant; the key None is the tenant as a whole."""

    tenant: str
    quotas: Mapping[str | None, SomeLimits]


@dataclass(slots=True)
class _Faults:
    """What is wrong with a file, each with its line where it can be told."""

    text: str
    found: list[str] = field(default_factory=list[str])

    def add(self, path: tuple[str, ...], message: str) -> None:
        line = _line_of(self.text, path)
        where = ".".join(json.dumps(part) if "." in part else part for part in path)
        self.found.append(f"{'' if line is None else f'line {line}: '}{where}: {message}")


def read_quota_file(text: str, name: str) -> QuotaFile:
    """Read a file of quotas; raises CommandFailed with every fault of it, each with its line.

    >>> read_quota_file('format = 1; tenant = "acme"', "quotas.toml")
    Traceback (most recent call last):
    jobengine.cli.exits.CommandFailed: error: quotas.toml is not TOML: ...
    """
    try:
        document = tomllib.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise CommandFailed(f"{name} is not TOML: {error or 'nested too deep'}", Exit.USAGE) from None
    faults = _Faults(text)
    found = _read_document(document, faults)
    if faults.found:
        raise CommandFailed(f"{name} cannot be used", Exit.USAGE, lines=faults.found)
    return found


def write_quota_file(tenant: str, quotas: Mapping[str | None, SomeLimits]) -> str:
    """Write a file of quotas, sorted by job type, with nothing in it that changes from day to day.

    >>> print(write_quota_file("acme", {"scan.v2": {"burst": 3}, None: {"refill_per_second": Decimal("0.50")}}))
    # Quotas of one tenant: change them here, look at `jobengine quota plan -f FILE`, then `quota apply`.
    format = 1
    tenant = "acme"
    <BLANKLINE>
    [whole_tenant]
    refill_per_second = 0.5
    <BLANKLINE>
    [job_types."scan.v2"]
    burst = 3
    <BLANKLINE>
    """
    lines = [
        "# Quotas of one tenant: change them here, look at `jobengine quota plan -f FILE`, then `quota apply`.",
        f"format = {FORMAT}",
        f"tenant = {json.dumps(tenant)}",
    ]
    for job_type in sorted(quotas, key=lambda key: key or ""):
        key = None if job_type is None else json.dumps(job_type) if "." in job_type else job_type
        lines += ["", f"[{_WHOLE}]" if key is None else f"[{_TABLES}.{key}]"]
        lines += [f"{limit} = {_plain(value)}" for limit, value in quotas[job_type].items()]
    return "\n".join(lines) + "\n"


def exact(limits: Mapping[str, Any]) -> dict[str, Number]:
    """Return limits of the API's JSON as exact numbers, in the order of the contract.

    >>> exact({"refill_per_second": 0.1, "burst": 3})
    {'burst': 3, 'refill_per_second': Decimal('0.1')}
    """
    found = {name: limits[name] for name in LIMIT_NAMES if name in limits}
    return {name: Decimal(str(value)) if name == "refill_per_second" else int(value) for name, value in found.items()}


def _plain(value: Number) -> str:
    # Never 1E-6 in a file that people read.
    return f"{int(value)}" if value == int(value) else f"{Decimal(value).normalize():f}"


def _read_document(document: Mapping[str, Any], faults: _Faults) -> QuotaFile:
    for key in sorted(document.keys() - {"format", "tenant", _WHOLE, _TABLES}):
        faults.add((key,), f"unknown; there are format, tenant, {_WHOLE} and {_TABLES}")
    if type(document.get("format")) is not int or document["format"] != FORMAT:
        faults.add(("format",), f"must be {FORMAT}")
    tenant = document.get("tenant")
    if not isinstance(tenant, str) or not tenant:
        faults.add(("tenant",), "must name the tenant of this file")
    quotas: dict[str | None, SomeLimits] = {}
    for job_type, path, table in _tables(document, faults):
        quotas[job_type] = _read_limits(table, path, faults)
    return QuotaFile(str(tenant), quotas)


def _tables(document: Mapping[str, Any], faults: _Faults) -> Iterator[tuple[str | None, tuple[str, ...], object]]:
    if _WHOLE in document:
        yield None, (_WHOLE,), document[_WHOLE]
    for job_type, table in _members(document.get(_TABLES, {}), (_TABLES,), faults).items():
        path = (_TABLES, job_type)
        if not re.fullmatch(JOB_TYPE, job_type):
            faults.add(path, "is no job type")
        yield job_type, path, table


def _members(table: object, path: tuple[str, ...], faults: _Faults) -> dict[str, Any]:
    if isinstance(table, dict):
        return cast("dict[str, Any]", table)
    faults.add(path, "must be a table")
    return {}


def _read_limits(table: object, path: tuple[str, ...], faults: _Faults) -> SomeLimits:
    given = _members(table, path, faults)
    for key in sorted(given.keys() - set(LIMIT_NAMES)):
        faults.add((*path, key), f"unknown; there are {', '.join(LIMIT_NAMES)}")
    if given == {} and isinstance(table, dict):
        faults.add(path, "names no limit")
    found: dict[str, Number] = {}
    for name in (name for name in LIMIT_NAMES if name in given):
        fault = _rate_fault(given[name]) if name == "refill_per_second" else _count_fault(given[name])
        if fault is None:
            found[name] = given[name]
        else:
            faults.add((*path, name), fault)
    return exact(found)


def _count_fault(value: object) -> str | None:
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        return f"must be a whole number from 0 to {MAX_COUNT}"
    return None


def _rate_fault(value: object) -> str | None:
    if type(value) is not int and not (isinstance(value, Decimal) and value.is_finite()):
        return "must be a number"
    rate = Decimal(value)
    exponent = rate.normalize().as_tuple().exponent
    if not 0 <= rate <= MAX_RATE or (isinstance(exponent, int) and exponent < -_DECIMALS):
        return f"must be a number from 0 to {MAX_RATE} with at most {_DECIMALS} decimals"
    return None


def _line_of(text: str, path: tuple[str, ...]) -> int | None:
    # As far as it stands on a line of its own: what is in an inline table, or under a dotted key, has none here.
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("["):
            table = _header(line)
            if table == path:
                return number
        elif (key := _KEY.match(line)) and (*table, _unquoted(key[1])) == path:
            return number
    return None


def _header(line: str) -> tuple[str, ...]:
    try:
        document: object = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    path: list[str] = []
    while isinstance(document, dict) and document:
        [(key, document)] = cast("dict[str, object]", document).items()
        path.append(key)
    return tuple(path)


def _unquoted(key: str) -> str:
    return next(iter(tomllib.loads(f"{key} = 0")), key)
