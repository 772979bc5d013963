"""``python -m jobengine_verify``."""

import sys

from jobengine_verify.cli import main

sys.exit(main())
