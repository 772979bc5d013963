"""Answers whose bytes are ready: the framework need not put them together a second time."""

from typing import Any

from litestar import Response
from litestar.types import Receive, Scope, Send

_WITHOUT_BODY = frozenset({204, 304})


class Written(Response[bytes]):
    """An answer that is sent just as it stands: its status, its headers, its bytes."""

    def to_asgi_response(self, *args: Any, **options: Any) -> Any:  # noqa: ARG002 - the signature of the framework
        """Return what sends the answer; of the framework's *options* for a route it takes the status."""
        status = self.status_code or options.get("status_code") or 200
        told = [(name.lower(), str(value)) for name, value in self.headers.items()]
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in told]
        body = b"" if status in _WITHOUT_BODY else self.content
        if status not in _WITHOUT_BODY:
            kind = str(self.media_type)
            kind += "; charset=utf-8" if kind.startswith("text/") else ""
            headers += [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]

        async def send_it(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - the signature of ASGI
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": False})

        return send_it
