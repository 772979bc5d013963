"""A worker's calls of the API over HTTP, with tokens of its client; nothing here knows a database."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import msgspec

from jobengine import __version__
from jobengine.errors import Forbidden, JobengineError, LeaseLost, LostRace, Unavailable, ValidationFailed

TIMEOUT_SECONDS: Final = 30.0
RENEW_BEFORE_SECONDS: Final = 30.0
SCOPE: Final = "orch:execute"
_LOOPBACK: Final = {"localhost", "127.0.0.1", "::1"}
_LOST: Final = {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}
_BAD: Final = {HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}
_LATER: Final = {HTTPStatus.TOO_MANY_REQUESTS}


class Calls:
    """Speaks to the server at *url* as one client of role Orch.Worker."""

    def __init__(self, url: str, client_id: str, secret: str) -> None:
        self._auth = (client_id, secret)
        self._tokens: dict[str, tuple[str, float]] = {}
        self._http = httpx2.AsyncClient(
            base_url=url,
            timeout=TIMEOUT_SECONDS,
            headers={"User-Agent": f"jobengine-worker/{__version__}"},
            # A proxy of the environment is no way to this machine itself.
            trust_env=urlsplit(url).hostname not in _LOOPBACK,
        )

    async def post(self, tenant_id: str, path: str, body: Mapping[str, object]) -> Any:
        """Return the JSON of the answer, None where there is none.

        An empty *tenant_id* is the client's only tenant. Raises LeaseLost, ValidationFailed, Forbidden, or Unavailable
        for what may be better later; a lost race too.
        """
        answer = await self._send(tenant_id, path, body)
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            # Revoked, or the keys were changed: a new token may be good.
            self._tokens.pop(tenant_id, None)
            answer = await self._send(tenant_id, path, body)
        if not answer.is_success:
            raise _failure(answer)
        return msgspec.json.decode(answer.content) if answer.content else None

    async def close(self) -> None:
        """Hang up."""
        await self._http.aclose()

    async def _send(self, tenant_id: str, path: str, body: Mapping[str, object]) -> httpx2.Response:
        token = await self._token(tenant_id)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return await self._request(f"/api/v1{path}", content=msgspec.json.encode(body), headers=headers)

    async def _token(self, tenant_id: str) -> str:
        now = asyncio.get_running_loop().time()
        token, until = self._tokens.get(tenant_id, ("", 0.0))
        if now >= until:
            form = {"grant_type": "client_credentials", "scope": SCOPE} | ({"tenant": tenant_id} if tenant_id else {})
            answer = await self._request("/oauth2/token", data=form, auth=self._auth)
            if not answer.is_success:
                raise _token_failure(answer)
            granted = msgspec.json.decode(answer.content)
            token, until = granted["access_token"], now + granted["expires_in"] - RENEW_BEFORE_SECONDS
            self._tokens[tenant_id] = token, until
        return token

    async def _request(self, path: str, **how: Any) -> httpx2.Response:
        try:
            return await self._http.post(path, **how)
        except httpx2.HTTPError as error:
            raise Unavailable(f"the server does not answer: {type(error).__name__}") from None


def _failure(answer: httpx2.Response) -> JobengineError:
    status, problem = answer.status_code, _members(answer)
    detail = str(problem.get("detail") or answer.reason_phrase)
    if problem.get("code") == LostRace.code:
        return LostRace(detail)
    if status in _LOST:
        return LeaseLost(detail)
    if status in _BAD:
        [first, *_] = problem.get("errors") or [{"path": "body", "message": detail}]
        return ValidationFailed(first["path"], first["message"])
    if status in _LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Unavailable(detail)
    return Forbidden(detail)


def _token_failure(answer: httpx2.Response) -> JobengineError:
    problem = _members(answer)
    detail = f"no token: {problem.get('error')}: {problem.get('error_description', '')}"
    if answer.status_code in _LATER or answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Unavailable(detail)
    return Forbidden(detail)


def _members(answer: httpx2.Response) -> dict[str, Any]:
    try:
        return msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}
