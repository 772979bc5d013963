"""The offline verifier, asked as on a command line."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.unit.audit.offline import Answer, Ask
from tests.unit.audit.samples import VKEY

from jobengine_verify.cli import main


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run the command over an export, and an earlier checkpoint if there is one."""

    def run(data: bytes, *, key: str = VKEY, former: Sequence[str] = (), since: str | None = None) -> Answer:
        file = tmp_path / "export.ndjson"
        file.write_bytes(data)
        arguments = [str(file)]
        for given in (key, *former):
            arguments += ["--key", given]
        if since is not None:
            earlier = tmp_path / "checkpoint"
            earlier.write_bytes(since.encode())
            arguments += ["--since", str(earlier)]
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run
