"""``http:url`` handlers: the claim by POST, the attempt's token as Bearer."""

from http import HTTPStatus

import httpx2

from jobengine.worker.outcome import Completed, Failed, Outcome

RETRY_STATUS = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
# To be let in; how long the answer may take is the lease's affair: the worker beats until somebody cancels.
_PATIENCE = httpx2.Timeout(None, connect=10, pool=10)


def http_target(handler: str) -> str:
    """Return the URL of an ``http:url`` handler; a URL that stands alone is one too.

    >>> http_target("http:https://jobs.example/run"), http_target("https://jobs.example/run")
    ('https://jobs.example/run', 'https://jobs.example/run')
    >>> http_target("http:jobs.example:9000/run")
    'http://jobs.example:9000/run'
    """
    rest = handler.removeprefix("http:")
    if rest.startswith(("http://", "https://")):
        return rest
    return handler if rest == handler or rest.startswith("//") else f"http://{rest}"


async def run_http(url: str, batch: bytes, token: str) -> Outcome:
    """Call *url*; 2xx completes, 429 and 503 retry, anything else fails. Cancelling this call hangs up."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        async with (
            httpx2.AsyncClient(timeout=_PATIENCE) as client,
            # The status is the answer; a body may be as long as it likes.
            client.stream("POST", url, content=batch, headers=headers) as answer,
        ):
            if answer.is_success:
                return Completed()
            return Failed(f"the handler answered {answer.status_code}", answer.status_code in RETRY_STATUS)
    except httpx2.InvalidURL as error:
        return Failed(f"the handler's URL is not one: {error}", retryable=False)
    except httpx2.HTTPError as error:
        return Failed(f"the handler cannot be reached: {type(error).__name__}", retryable=True)
