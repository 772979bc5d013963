"""``jobengine token``: an access token for other tools."""

import sys
from typing import Annotated

from cyclopts import App, Parameter

from jobengine.cli.call import TheCall
from jobengine.cli.show import print_json

app = App(name="token", default_parameter=Parameter(negative=()))


@app.default
def token(*, scope: Annotated[list[str], Parameter(consume_multiple=True)], call: TheCall) -> None:
    """Print an access token; with ``--output json`` the whole answer of the authority.

    Args:
        scope: what the token is to allow, like orch:read; may be given more than once.
        call: the global options.
    """
    with call.api() as api:
        answer = api.token(" ".join(scope))
    if call.as_json:
        print_json(answer)
    else:
        sys.stdout.write(f"{answer['access_token']}\n")
