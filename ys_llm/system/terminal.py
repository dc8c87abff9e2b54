"""What a terminal can show, and text that may be shown there."""

import os
import re
from typing import TextIO

# All but line feed and tab; the last two ranges turn the direction of what follows.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def is_plain() -> bool:
    """Whether the terminal can do no more than print: TERM is `dumb`, or is not set."""
    return os.environ.get("TERM", "") in ("", "dumb")


def has_colour(file: TextIO) -> bool:
    """Whether colours may be printed there; see https://no-color.org."""
    return file.isatty() and not is_plain() and not os.environ.get("NO_COLOR")


def printable(text: str) -> str:
    r"""The text with control characters written out, as `\x1b`: a terminal would obey them."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
