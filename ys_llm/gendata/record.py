"""One record of a corpus: a prompt and its answer."""

from dataclasses import dataclass

START, END = "<start>", "<end>"


@dataclass(frozen=True)
class Record:
    """A prompt and the response to it."""

    prompt: str
    response: str

    def text(self) -> str:
        """The record as it stands in a file: `PROMPT<start>RESPONSE<end>` and a blank line."""
        for part in (self.prompt, self.response):
            assert START not in part and END not in part, part
        return f"{self.prompt}{START}{self.response}{END}\n\n"
