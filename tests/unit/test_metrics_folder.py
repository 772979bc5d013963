"""The folder in which the workers of a supervisor count together: private, and gone when nobody needs it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from jobengine.metrics import several_processes

LIVES = """\
import sys
from jobengine.metrics import several_processes
with several_processes():
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for temporary folders that no other process uses."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def supervisor(temporary: Path) -> "subprocess.Popen[bytes]":
    """Start a process that counts with others."""
    process = subprocess.Popen(
        [sys.executable, "-c", LIVES],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline()
    return process


def test_what_a_killed_supervisor_left_goes_with_the_next_start(temporary: Path) -> None:
    """The folder of one that lives stays; so does what somebody else put there."""
    (temporary / "jobengine-metrics-of-somebody").mkdir()
    with supervisor(temporary) as killed, supervisor(temporary) as living:
        killed.kill()
        killed.wait(30)
        assert len(list(temporary.iterdir())) == 3

        with several_processes():
            assert len(list(temporary.iterdir())) == 3
            assert os.environ["PROMETHEUS_MULTIPROC_DIR"].startswith(str(temporary))
        assert len(list(temporary.iterdir())) == 2
        living.communicate(timeout=30)

    assert [path.name for path in temporary.iterdir()] == ["jobengine-metrics-of-somebody"]
