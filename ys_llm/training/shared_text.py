"""What the runs of a comparison need not do twice: read the text, train a tokenizer, encode."""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config
from ys_llm.runs.folder import checkpoints, locked
from ys_llm.system.files import write_atomically

_TOKENIZER = "tokenizer.json"


def share(folder: Path, config: Config, finished: Iterable[Path]) -> None:
    """Give a run that is not begun the tokenizer and the tokens of one of `finished`, if alike.

    It would come to the same: a tokenizer follows from the text and its settings, and tokens are
    kept under a hash of both. Files are linked, so that they take no more room.
    """
    if checkpoints(folder) or (folder / _TOKENIZER).exists() or not _trains_its_own(config):
        return
    for other in finished:
        saved = load_config(other / "config.yaml").config
        if (saved.data, saved.tokenizer) == (config.data, config.tokenizer):
            with locked(folder):
                _share(other, folder)
            return


def _share(other: Path, folder: Path) -> None:
    if (other / "cache").is_dir():
        shutil.copytree(other / "cache", folder / "cache", copy_function=_link, dirs_exist_ok=True)
    tokenizer = (other / _TOKENIZER).read_text(encoding="utf-8")
    write_atomically(folder / _TOKENIZER, tokenizer, create_folder=False)


def _trains_its_own(config: Config) -> bool:
    """Whether the tokenizer is that of no other run."""
    train = config.train
    borrowed = train.init_from or train.reference_run or train.teacher
    return not borrowed and config.sft.method == "none"


def _link(source: str, target: str) -> None:
    """The file under a second name; where the file system cannot, the run encodes for itself."""
    with suppress(OSError):
        os.link(source, target)
