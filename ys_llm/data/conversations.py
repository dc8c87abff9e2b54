"""Conversations and preference pairs, read from files of the forms in which people keep them.

The files are those that `readers.py` reads, told apart in the same way; here every form of
`formats.py` is taken.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from ys_llm.config.schema import DataConfig
from ys_llm.data.chat import Conversation, PreferencePair, Turn
from ys_llm.data.formats import Parsed, RecordForm
from ys_llm.data.readers import (
    ADVICE,
    Reading,
    document_of,
    is_blank,
    no_text,
    place_for,
    read_files,
)
from ys_llm.data.records import Document
from ys_llm.data.spool import file_of
from ys_llm.data.tally import Tally
from ys_llm.data.text_files import find_files

_EXPECTED = (
    'Expected {"messages": [{"role": "user", "content": "..."}, ...]}, or another form that '
    "docs/chat.md lists"
)

Example = Conversation | PreferencePair | Document


@dataclass
class Examples:
    """What was read, and how many records of each form there were."""

    found: list[Example]
    tally: Tally

    @property
    def forms(self) -> Counter[str]:
        """How many records of each form there were."""
        return self.tally.forms


def read_examples(
    path: Path | str,
    config: DataConfig | None = None,
    *,
    command: str = ADVICE,
    scratch: Path | None = None,
) -> Examples:
    """Read a file, or a folder and all folders below it; examples are sorted by their content.

    As `read_corpus`, but all forms are taken. Where there are conversations, a record of a prompt
    and its response is one of two turns; else it is a document.
    """
    config = config or DataConfig()
    files = find_files(path, command=command, include=config.include)
    texts = place_for(files, scratch)
    with_turns: list[Conversation | PreferencePair] = []

    def add_record(form: RecordForm, parsed: Parsed, source: str) -> None:
        if document := document_of(parsed, source):
            texts.add(document)
        elif isinstance(parsed, Conversation | PreferencePair):
            with_turns.append(replace(parsed, source=source))

    def drop(name: str) -> None:
        texts.drop(name)
        with_turns[:] = [one for one in with_turns if file_of(one.source) != name]

    reading = Reading(config, texts, add_record, lambda _: _EXPECTED, drop)
    tally = read_files(files, reading, scratch)
    # One by one, the documents of a large text have no text in memory.
    found: list[Example] = [*with_turns, *texts.documents()[:]]
    if not found:
        raise no_text(path, tally, command)
    if any(isinstance(one, Conversation) for one in found):
        found = [as_conversation(one) for one in found]
    found.sort(key=lambda one: (one.id, one.source))
    return Examples(found, tally)


def as_conversation(example: Example) -> Example:
    """Return a record of a prompt and its response as a conversation of two turns."""
    if not isinstance(example, Document) or not example.has_prompt:
        return example
    prompt, reply = example.prompt or "", Turn("assistant", example.text)
    turns = (reply,) if is_blank(prompt) else (Turn("user", prompt), reply)
    return Conversation(turns, example.source)
