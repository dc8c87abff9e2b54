"""`python -m benchmarks --help`: how fast ys is, compared with its baselines."""

import sys

if __name__ == "__main__":
    # Here, because the processes that encode text import this file again, and need no torch.
    from benchmarks.command import main

    sys.exit(main(sys.argv[1:]))
