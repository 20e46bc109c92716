"""`python -m diffinf_lib` is the command `diffinf`."""

import sys

from diffinf_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
