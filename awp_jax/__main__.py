"""``python -m awp_jax``: the command line, also where its script is not on the path."""

import sys

from awp_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
