"""Command line of the report: `python -m drnas_jax.report DIR [DIR ...]`."""

import sys

from drnas_jax.report.page import main

if __name__ == "__main__":
    sys.exit(main())
