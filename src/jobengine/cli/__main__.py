"""``python -m jobengine.cli``: the same as ``jobengine``."""

from jobengine.cli.main import main

main()
