"""A network that breaks off once, in the middle of an answer."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Cutter:
    """Forwards connections to a server; the first answer to a request for *path* ends after *most* bytes."""

    def __init__(self, url: str, path: str, most: int) -> None:
        target = urlsplit(url)
        self.cuts = 0
        self._target = (target.hostname or "", target.port or 80)
        self._path = path.encode()
        self._most = most
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def run(self) -> None:
        """Serve until the socket is closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _forward(self, client: socket.socket) -> None:
        limits: list[int] = []
        with client, socket.create_connection(self._target) as server, suppress(OSError):
            answers = threading.Thread(target=self._answer, args=(server, client, limits), daemon=True)
            answers.start()
            while asked := client.recv(65_536):
                if self._path in asked and not self.cuts:
                    self.cuts += 1
                    limits.append(self._most)
                server.sendall(asked)
            server.shutdown(socket.SHUT_RDWR)
            answers.join()

    def _answer(self, server: socket.socket, client: socket.socket, limits: list[int]) -> None:
        """Pass on what the server says; with a limit, only so much of it."""
        with suppress(OSError):
            while said := server.recv(65_536):
                client.sendall(said[: limits[0]] if limits else said)
                if limits:
                    limits[0] -= len(said)
                    if limits[0] <= 0:
                        break
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting(url: str, path: str, most: int) -> Iterator[Cutter]:
    """Run such a network before the server at *url*."""
    cutter = Cutter(url, path, most)
    thread = threading.Thread(target=cutter.run, daemon=True)
    thread.start()
    try:
        yield cutter
    finally:
        cutter.close()
        thread.join()
