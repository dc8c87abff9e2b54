"""The configurations and kinds of records that come with ys, in the repository or in a wheel."""

import difflib
from pathlib import Path

import ys_llm
from ys_llm.errors import EXIT_USAGE, UserError


def shipped_folder() -> Path:
    """The folder `configs`: inside an installed package, next to the package in a repository."""
    package = Path(ys_llm.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(name: str) -> Path:
    """The configuration file at that path, or the shipped one of that name.

    Raises UserError where there is neither, with the names of the shipped ones.
    """
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path  # if it does not exist, the reader reports it
    shipped = {file.stem: file for file in sorted(shipped_folder().glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=1)
    raise UserError(
        f"there is no file {name}, and no shipped configuration of that name",
        f"Did you mean {near[0]}?" if near else f"Those that are shipped: {', '.join(shipped)}.",
        exit_code=EXIT_USAGE,
    )
