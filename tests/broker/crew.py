"""Worker processes of a test: started, killed, and started again."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.acceptance.serving import ROOT, STOP_SECONDS, Credentials, Server

PATIENCE_SECONDS = 90


@dataclass(slots=True)
class Crew:
    """Workers beside one server; what the server knows of secrets they do not."""

    server: Server
    credentials: Credentials
    environ: dict[str, str]
    log: Path
    command: Sequence[str] = ("-m", "jobengine.cli", "worker", "--slots", "2")
    running: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def start(self) -> "subprocess.Popen[bytes]":
        """Start a worker and return at once."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBENGINE_")}
        installation = self.server.installation
        ours = {
            "JOBENGINE_URL": self.server.url,
            "JOBENGINE_CLIENT_ID": self.credentials.client_id,
            "JOBENGINE_CLIENT_SECRET": self.credentials.secret,
            "JOBENGINE_CONFIG": str(installation.folder / "jobengine.toml"),
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "TMPDIR": str(installation.folder),
        }
        with self.log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, *self.command],
                env={**kept, **ours, **self.environ},
                cwd=installation.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def stop(self, process: "subprocess.Popen[bytes]") -> int:
        """Ask a worker to end as a supervisor does, and return its exit code."""
        process.send_signal(signal.SIGTERM)
        self.running.remove(process)
        return process.wait(STOP_SECONDS)

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """End a worker without a word: kill -9, to it and to nobody else."""
        process.kill()
        process.wait(STOP_SECONDS)
        self.running.remove(process)

    def told(self) -> str:
        """Return what the workers have logged."""
        return self.log.read_text("utf-8", errors="replace")


@contextmanager
def employing(crew: Crew) -> Iterator[Crew]:
    """End whatever still runs of a crew when the block ends."""
    try:
        yield crew
    finally:
        for process in crew.running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_SECONDS)
