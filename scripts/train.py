"""`python scripts/train.py clean all` is `ys train clean all`."""

import sys

from ys_llm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
