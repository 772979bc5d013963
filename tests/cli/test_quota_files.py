"""Reading and writing quotas as a file, without a server."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobengine.cli.exits import CommandFailed, Exit
from jobengine.cli.quota_files import MAX_COUNT, read_quota_file, write_quota_file

HEAD = 'format = 1\ntenant = "acme"\n'
COUNTS = st.integers(0, MAX_COUNT)
RATES = st.decimals(0, 10**9, places=6)
LIMITS = st.fixed_dictionaries(
    {}, optional={"max_active": COUNTS, "max_per_hour": COUNTS, "burst": COUNTS, "refill_per_second": RATES}
).filter(bool)
JOB_TYPES = st.none() | st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z")


@given(quotas=st.dictionaries(JOB_TYPES, LIMITS, max_size=5))
def test_a_written_file_reads_as_what_was_written(quotas: dict[str | None, dict[str, int | Decimal]]) -> None:
    """Job types with dots, rates of six decimals and the whole tenant come back exactly."""
    found = read_quota_file(write_quota_file("acme", quotas), "quotas.toml")

    assert (found.tenant, found.quotas) == ("acme", quotas)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "format: must be 1"),
        ("format = 2\n", "line 1: format: must be 1"),
        ("format = true\n", "line 1: format: must be 1"),
        ("format = 1\n", "tenant: must name the tenant of this file"),
        (HEAD + "quota = 1\n", "line 3: quota: unknown; there are format, tenant, whole_tenant and job_types"),
        (HEAD + "job_types = 3\n", "line 3: job_types: must be a table"),
        (HEAD + "[job_types]\nscan = 3\n", "line 4: job_types.scan: must be a table"),
        (HEAD + "[job_types.scan]\n", "line 3: job_types.scan: names no limit"),
        (HEAD + '[job_types."a b"]\nburst = 1\n', "line 3: job_types.a b: is no job type"),
        (HEAD + "[whole_tenant]\nmax_activ = 3\n", "line 4: whole_tenant.max_activ: unknown; there are max_active"),
        (HEAD + "[job_types.scan]\nburst = 5.0\n", "line 4: job_types.scan.burst: must be a whole number"),
        (HEAD + "[job_types.scan]\nburst = true\n", "line 4: job_types.scan.burst: must be a whole number"),
        (HEAD + "[job_types.scan]\nburst = '5'\n", "line 4: job_types.scan.burst: must be a whole number"),
        (HEAD + "[job_types.scan]\nburst = -1\n", "line 4: job_types.scan.burst: must be a whole number"),
        (HEAD + "[job_types.scan]\nburst = 1000000000001\n", "line 4: job_types.scan.burst: must be a whole number"),
        (HEAD + "[job_types.scan]\nrefill_per_second = nan\n", "refill_per_second: must be a number"),
        (HEAD + "[job_types.scan]\nrefill_per_second = inf\n", "refill_per_second: must be a number"),
        (HEAD + "[job_types.scan]\nrefill_per_second = 0.0000001\n", "at most 6 decimals"),
        (HEAD + "[job_types.scan]\nrefill_per_second = 1e999999\n", "from 0 to 1000000000"),
        (HEAD + 'job_types = { "x.y" = { burst = -1 } }\n', 'job_types."x.y".burst: must be a whole number'),
    ],
)
def test_a_fault_is_told_with_its_place_and_line(text: str, fault: str) -> None:
    """Whoever wrote the file finds the place, and a plan never guesses."""
    with pytest.raises(CommandFailed) as failed:
        read_quota_file(text, "quotas.toml")

    assert any(fault in line for line in failed.value.lines), failed.value.lines
    assert failed.value.end is Exit.USAGE


def test_all_faults_are_told_at_once() -> None:
    """Nobody mends a file one run at a time."""
    with pytest.raises(CommandFailed) as failed:
        read_quota_file("format = 1\n[job_types.a]\nburst = -1\nmax_active = 'x'\n", "quotas.toml")

    assert len(failed.value.lines) == 3


@pytest.mark.parametrize(
    "text",
    [
        "format = ",
        "[a]\n[a]\n",
        "format = 1\nformat = 1\n",
        "x = " + "[" * 5_000 + "]" * 5_000,
        f"x = {'9' * 5_000}",
        "x = 2026-13-45\n",
    ],
)
def test_what_is_not_toml_is_told_as_such(text: str) -> None:
    """Neither a deep file nor a long number ends in anything but a sentence."""
    with pytest.raises(CommandFailed, match="is not TOML"):
        read_quota_file(text, "quotas.toml")
