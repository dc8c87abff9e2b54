"""`python scripts/run.py quickstart` is `ys run quickstart`."""

import sys

from ys_llm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
