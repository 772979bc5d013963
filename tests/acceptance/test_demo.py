"""`jobengine demo`: the promises played by the program itself."""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from tests.acceptance.advisories import find_advisories
from tests.acceptance.serving import Installation


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, "CompletedProcess[str]"]:
    """Two demos at the same time, on the machine's own events and on given ones: neither is in the other's way."""
    folder = tmp_path_factory.mktemp("demo")
    words = {"own": (), "given": ("--events", str(find_advisories(folder).path))}
    with ThreadPoolExecutor(len(words)) as threads:
        ended = {
            name: threads.submit(Installation.make(folder / name, furnished=False).run, "demo", *more)
            for name, more in words.items()
        }
        return {name: future.result() for name, future in ended.items()}


@pytest.mark.parametrize("events", ["own", "given"])
def test_demo_plays_eight_of_eight_promises(played: Mapping[str, "CompletedProcess[str]"], events: str) -> None:
    """It needs nothing but itself, cleans up after itself, and takes any file of events."""
    ended = played[events]

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "8 of 8" in ended.stdout
    assert "not as told" not in ended.stdout
    assert re.search(r"completed: [1-9]\d+ events processed, 0 duplicates", ended.stdout)


def test_demo_says_which_line_of_a_file_is_no_event(tmp_path: Path) -> None:
    """A file that cannot be used ends it before anything starts."""
    path = tmp_path / "events.jsonl"
    path.write_text('{"id": "a", "event_time": "2026-01-01T00:00:00Z"}\n{"id": "b"}\n', "utf-8")

    ended = Installation.make(tmp_path / "demo", furnished=False).run("demo", "--events", str(path))

    assert ended.returncode == 2
    assert f"{path}, line 2" in ended.stderr
