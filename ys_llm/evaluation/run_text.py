"""The text that a run was trained on, and the text that it held out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ys_llm.data.readers import read_corpus
from ys_llm.data.records import Document
from ys_llm.data.split import Split, SplitRecord
from ys_llm.data.split_cache import load_split
from ys_llm.data.words import CommonWords, common_words
from ys_llm.errors import UserError, command_line
from ys_llm.runs.folder import COMMON_WORDS, SPLIT
from ys_llm.runs.model_files import LoadedRun


def common_words_of(loaded: LoadedRun) -> CommonWords:
    """The words that are common in the run's training text.

    A run of an earlier version did not store them: they are counted again, which needs its text.
    """
    stored = CommonWords.load(loaded.path / COMMON_WORDS)
    if stored is not None:
        return stored
    path = Path(loaded.config.data.path)
    if not path.exists():
        raise UserError(
            f"the run {loaded.path.name} has no {COMMON_WORDS}, and the text that it was trained "
            f"on, {path}, is not there to count them again",
            "Put the text back, or type this in the folder where it was trained",
        )
    with _split_of(loaded, path) as split:
        return common_words(split.training)


@contextmanager
def documents_of_path(
    loaded: LoadedRun, path: Path, *, held_out: bool
) -> Iterator[Sequence[Document]]:
    """The documents of a file or folder; with `held_out` those that the run did not train on.

    A document's own content decides whether a run holds it out, wherever it is found. Raises
    UserError where there are none.
    """
    if not held_out:
        with tempfile.TemporaryDirectory(prefix="ys-eval-") as scratch:
            command = command_line("eval", loaded.path.name, "PATH")
            config = loaded.config.data
            yield read_corpus(path, config, command=command, scratch=Path(scratch)).documents
        return
    with _split_of(loaded, path) as split:
        if not split.validation:
            raise UserError(
                f"{path} has no text that the run {loaded.path.name} has held out",
                "Leave out --held-out to evaluate all of it",
            )
        yield split.validation


@contextmanager
def _split_of(loaded: LoadedRun, path: Path) -> Iterator[Split]:
    with tempfile.TemporaryDirectory(prefix="ys-eval-") as scratch:
        yield load_split(
            replace(loaded.config.data, path=str(path)),
            record=SplitRecord.load(loaded.path / SPLIT),
            command=command_line("eval", loaded.path.name, "PATH"),
            scratch=Path(scratch),
        )
