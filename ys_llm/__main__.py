"""`python -m ys_llm`, the same as `ys`."""

import sys

from ys_llm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
