"""``jobengine serve``: the API over HTTP."""

from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from jobengine.cli.call import TheCall

app = App(name="serve", default_parameter=Parameter(negative=()))


@app.default
def serve(*, workers: Annotated[int, Parameter(validator=Number(gte=1, lte=64))] = 1, call: TheCall) -> int:
    """Serve until SIGTERM or SIGINT; settings come from the environment alone (docs/operations.md).

    Args:
        workers: processes that share the port.
        call: the global options.
    """
    from jobengine.cli import server

    return server.run(call, workers)
