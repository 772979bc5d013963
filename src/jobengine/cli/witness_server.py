"""A small witness over HTTP: one key, one file for each log it has seen, and never a step back."""

import fcntl
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobengine.audit.checkpoint import Checkpoint, NoteError, VerifierKey, parse_checkpoint, parse_verifier_key
from jobengine.audit.witness import (
    Inconsistent,
    MalformedSubmission,
    NotSigned,
    Stale,
    UnknownLog,
    WitnessRefused,
    cosign,
    judge,
    parse_submission,
    witness_key,
)
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.clock import utc_now

MOST_BYTES: Final = 65_536
IDLE_SECONDS: Final = 30
_STATUS: Final[Mapping[type[WitnessRefused], int]] = {
    MalformedSubmission: 400,
    NotSigned: 403,
    UnknownLog: 404,
    Stale: 409,
    Inconsistent: 422,
}


class Witness:
    """What a witness knows: its key, the logs it watches, and the last checkpoint of each that it cosigned.

    Raises OSError or ValueError where *folder* cannot be used, or another process uses it.
    """

    def __init__(self, folder: Path, logs: Path, name: str) -> None:
        (folder / "seen").mkdir(parents=True, exist_ok=True, mode=0o700)
        self._seen = folder / "seen"
        self._logs = logs
        self._one_at_a_time = threading.Lock()
        self._lock = (folder / "lock").open("w")
        # Two processes that both look, and both write, could cosign two trees.
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._private = _read_key(folder / "witness.key")
        self._name = name
        self.key = witness_key(name, self._private)
        self._watched()

    def add_checkpoint(self, body: str) -> str:
        """Return the cosignature's line for a submission; raises WitnessRefused."""
        submission = parse_submission(body)
        watched = self._watched()
        with self._one_at_a_time:
            shown = judge(submission, watched, self._latest)
            # Kept before it is said: after a crash the witness remembers at least what it signed.
            _write(self._seen / _file_of(shown.origin), shown.body())
        return f"{cosign(shown, self._private, self._name, int(utc_now().timestamp()))}\n"

    def _latest(self, origin: str) -> Checkpoint | None:
        try:
            return parse_checkpoint((self._seen / _file_of(origin)).read_text("utf-8"))
        except FileNotFoundError:
            return None

    def _watched(self) -> Mapping[str, Sequence[VerifierKey]]:
        lines = (line.strip() for line in self._logs.read_text("utf-8").splitlines())
        keys = [parse_verifier_key(line) for line in lines if line and not line.startswith("#")]
        return {key.name: [other for other in keys if other.name == key.name] for key in keys}


def run(witness: Witness, host: str, port: int) -> int:
    """Serve until a signal ends it; raises CommandFailed when the port is taken."""
    try:
        server = _Server((host, port), witness)
    except OSError as error:
        raise CommandFailed(f"cannot listen on {host}:{port}: {error.strerror}", Exit.ERROR) from None
    with server:

        def stop(_number: int, _frame: object) -> None:
            # From another thread: the server's own is the one that was interrupted.
            threading.Thread(target=server.shutdown).start()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        sys.stderr.write(f"witness listens on http://{host}:{server.server_address[1]}\n")
        sys.stderr.flush()
        server.serve_forever()
    return Exit.OK


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], witness: Witness) -> None:
        self.witness = witness
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def do_POST(self) -> None:
        """Answer a submission."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MOST_BYTES:
            self.close_connection = True
            self._answer(413, "the body is too long, or its length is not told")
            return
        body = self.rfile.read(int(length))
        if self.path != "/add-checkpoint":
            self._answer(404, "POST /add-checkpoint is all there is")
            return
        try:
            self._answer(200, cast("_Server", self.server).witness.add_checkpoint(body.decode()))
        except Stale as stale:
            self._answer(_STATUS[Stale], f"{stale.size}\n", "text/x.tlog.size")
        except WitnessRefused as refused:
            self._answer(_STATUS[type(refused)], f"{refused}\n")
        except (UnicodeDecodeError, NoteError) as error:
            self._answer(400, f"{error}\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Tell one line about a request."""
        sys.stderr.write(f"{self.address_string()} {format % args}\n")

    def _answer(self, status: int, text: str, media_type: str = "text/plain; charset=utf-8") -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _file_of(origin: str) -> str:
    return sha256(origin.encode()).hexdigest()


def _read_key(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        _write(path, Ed25519PrivateKey.generate().private_bytes_raw().hex())
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text("ascii")))


def _write(path: Path, text: str) -> None:
    """Write a file whole, and durably, or not at all."""
    part = path.with_name(f"{path.name}.part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
