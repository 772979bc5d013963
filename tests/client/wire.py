"""A wire between a client and a server that can lose answers, and can be cut."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Wire:
    """Carries bytes both ways, one thread a direction of a connection."""

    server_port: int
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    losing: bytes | None = None
    """The answer to the next request whose head holds this is lost: the connection is closed in its place."""
    lost: int = 0
    _open: list[socket.socket] = field(default_factory=list[socket.socket])

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def cut(self) -> None:
        """Let nothing through any more."""
        # A blocked accept() outlives close(): shutting down wakes it.
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def carry(self) -> None:
        """Carry until it is cut."""
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.server_port))
                self._open += [near, far]
                doomed = threading.Event()
                threading.Thread(target=self._ask, args=(near, far, doomed), daemon=True).start()
                threading.Thread(target=self._answer, args=(far, near, doomed), daemon=True).start()

    def _ask(self, near: socket.socket, far: socket.socket, doomed: threading.Event) -> None:
        with suppress(OSError):
            while sent := near.recv(65_536):
                if self.losing is not None and self.losing in sent:
                    self.losing = None
                    doomed.set()
                far.sendall(sent)
            far.shutdown(socket.SHUT_WR)

    def _answer(self, far: socket.socket, near: socket.socket, doomed: threading.Event) -> None:
        with suppress(OSError):
            while said := far.recv(65_536):
                if doomed.is_set():
                    self.lost += 1
                    near.shutdown(socket.SHUT_RDWR)
                    return
                near.sendall(said)
            near.shutdown(socket.SHUT_WR)


@contextmanager
def wire_to(port: int) -> Iterator[Wire]:
    """Lay a wire to the server on *port* until the block ends."""
    wire = Wire(port)
    thread = threading.Thread(target=wire.carry, daemon=True)
    thread.start()
    try:
        yield wire
    finally:
        wire.cut()
        thread.join()
