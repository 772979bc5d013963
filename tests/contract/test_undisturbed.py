"""Whoever sends slowly, much or deep is refused, and others keep getting their answers meanwhile."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Event
from time import monotonic
from urllib.parse import urlsplit

import pytest
from tests.acceptance.serving import Server
from tests.contract.deployment import FORM, Deployment, Heard

MEBIBYTE = 2**20
JSON = ("Content-Type", "application/json")
PATIENCE_SECONDS = 2.0
SLOW_CLIENTS = 50

Load = Callable[[Deployment, str], Heard]


def bearer(token: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {token}")


def form(deployment: Deployment, body: bytes) -> Heard:
    headers = [("Content-Type", FORM), ("Authorization", f"Basic {deployment.owner.basic}")]
    return deployment.send("POST", "/oauth2/token", headers, body)


def document(deployment: Deployment, token: str, body: bytes) -> Heard:
    return deployment.send("POST", "/api/v1/quotas", [bearer(token), JSON], body)


# What is sent, and the status that it gets; None stands for a connection that ends without an answer.
LOADS: dict[str, tuple[Load, int]] = {
    "forms of 1 MiB": (lambda to, _: form(to, b"a=" + b"x" * MEBIBYTE), 413),
    "forms of 10,000 parameters": (lambda to, _: form(to, b"&".join(b"p%d=1" % n for n in range(10_000))), 413),
    "forms of 5,000 empty parameters": (lambda to, _: form(to, b"a&" * 5_000), 400),
    "documents of 1 MiB in brackets": (lambda to, token: document(to, token, b"[" * MEBIBYTE), 400),
    "documents 100,000 deep": (lambda to, token: document(to, token, b'{"a":' * 100_000 + b"1" + b"}" * 100_000), 400),
    "documents of one string of 1 MiB": (lambda to, token: document(to, token, b'"' + b"\\" * (MEBIBYTE - 2)), 400),
    "documents of 1 MiB of digits": (lambda to, token: document(to, token, b"9" * (MEBIBYTE - 1)), 422),
    "documents of 100,000 members": (
        lambda to, token: document(to, token, b"{" + b",".join(b'"%d":1' % n for n in range(90_000)) + b"}"),
        422,
    ),
    "queries of 10,000 parameters": (
        lambda to, token: to.send("GET", "/api/v1/quotas?" + "a&" * 10_000, [bearer(token)]),
        422,
    ),
}


@contextmanager
def kept_up(load: Callable[[], Heard], heard: list[Heard]) -> Iterator[None]:
    """Send *load* again and again from two threads until the block ends."""
    over = Event()

    def go_on() -> None:
        while not over.is_set():
            heard.append(load())

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(go_on) for _ in range(2)]
        try:
            yield
        finally:
            over.set()
        for thread in running:
            thread.result()


def longest_wait(deployment: Deployment, token: str, times: int = 8) -> float:
    """Return how long the slowest of some plain questions waits for its answer."""
    waits: list[float] = []
    for _ in range(times):
        asked = monotonic()
        assert deployment.call(token, "GET", "/quotas").status == 200
        waits.append(monotonic() - asked)
    return max(waits)


@pytest.fixture(scope="module")
def token(deployment: Deployment) -> str:
    """A token for everything."""
    return deployment.everything()


@pytest.mark.parametrize(("load", "status"), LOADS.values(), ids=LOADS)
def test_a_flood_is_refused_and_holds_nobody_up(deployment: Deployment, token: str, load: Load, status: int) -> None:
    """Every one of them gets its refusal, and every plain question between them its answer."""
    heard: list[Heard] = []

    with kept_up(lambda: load(deployment, token), heard):
        slowest = longest_wait(deployment, token)

    assert {answer.status for answer in heard} == {status}
    assert slowest < PATIENCE_SECONDS


def test_a_token_of_200_kilobytes_holds_nobody_up(deployment: Deployment, running: Server, token: str) -> None:
    """No head is read that far; it is refused or cut off, and the question beside it is answered."""
    huge = b"GET /api/v1/quotas HTTP/1.1\r\nHost: jobengine\r\nAuthorization: Bearer " + b"a" * 200_000 + b"\r\n\r\n"

    for _ in range(5):
        with connected(running) as wire:
            assert said(wire, huge) in {b"431", b"401", b""}
            assert longest_wait(deployment, token, 1) < PATIENCE_SECONDS


def test_a_large_token_in_a_body_is_only_a_bad_token(deployment: Deployment) -> None:
    """Introspection of 15 kB of anything says that it is not active."""
    headers = [("Content-Type", FORM), ("Authorization", f"Basic {deployment.owner.basic}")]

    answer = deployment.send("POST", "/oauth2/introspect", headers, b"token=" + b"a." * 7_500)

    assert (answer.status, answer.json()) == (200, {"active": False})


def test_clients_that_send_slowly_hold_nobody_up(deployment: Deployment, running: Server, token: str) -> None:
    """Fifty that stopped in the middle of their heads and bodies cost a connection each, and nothing else."""
    heads = (
        b"POST /oauth2/token HTTP/1.1\r\nHost: jobengine\r\nContent-Type: application/x-www-",
        b"POST /oauth2/token HTTP/1.1\r\nHost: jobengine\r\nContent-Length: 100\r\n\r\ngrant_",
        b"POST /api/v1/quotas HTTP/1.1\r\nHost: jobengine\r\nAuthorization: Bearer " + token.encode() + b"\r\n"
        b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
    )
    with ExitStack() as opened:
        wires = [opened.enter_context(connected(running)) for _ in range(SLOW_CLIENTS)]
        for number, wire in enumerate(wires):
            wire.sendall(heads[number % len(heads)])

        assert longest_wait(deployment, token) < PATIENCE_SECONDS
        assert deployment.call(token, "POST", "/admissions", {"job_type": "beside"}).status == 201


def test_a_client_that_reads_nothing_holds_nobody_up(deployment: Deployment, running: Server, token: str) -> None:
    """Its answers wait in its own connection."""
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: jobengine\r\n\r\n"
    with ExitStack() as opened:
        for _ in range(10):
            wire = opened.enter_context(connected(running))
            wire.sendall(asked * 20)

        assert longest_wait(deployment, token) < PATIENCE_SECONDS


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    """One connection to the server."""
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=30) as opened:
        yield opened


def said(wire: socket.socket, sent: bytes) -> bytes:
    """Send *sent* and return the status of the answer, nothing where the connection ends without one."""
    try:
        wire.sendall(sent)
        return wire.recv(64)[9:12]
    except OSError:
        return b""
