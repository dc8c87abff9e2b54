"""Log-probabilities as OpenAI's API gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ys_llm.data.tokenizer import StreamDecoder, Tokenizer
from ys_llm.inference.sampling import ScoredToken


class CompletionLogprobs:
    """The `logprobs` of /v1/completions: four lists, which a stream gives piece by piece."""

    def __init__(self, tokenizer: Tokenizer, *, with_top: bool) -> None:
        self._tokenizer, self._with_top = tokenizer, with_top
        self._decoder, self._offset = StreamDecoder(tokenizer), 0

    def of(
        self, ids: Sequence[int], scores: Sequence[ScoredToken | None]
    ) -> dict[str, list[Any] | None]:
        """Of the next tokens; a token without a score has null, as nothing is before it.

        `text_offset` is where the text of a token begins, in characters.
        """
        offsets = []
        for id in ids:
            offsets.append(self._offset)
            self._offset += len(self._decoder.push(id))
        return {
            "tokens": [self._tokenizer.token_text(id) for id in ids],
            "token_logprobs": [None if score is None else score.logprob for score in scores],
            "top_logprobs": [self._top(score) for score in scores] if self._with_top else None,
            "text_offset": offsets,
        }

    def _top(self, score: ScoredToken | None) -> dict[str, float] | None:
        """The most probable tokens, and the one that is there."""
        if score is None:
            return None
        text = self._tokenizer.token_text
        shown = {text(one.id): one.logprob for one in score.candidates}
        return shown | {text(score.id): score.logprob}


def chat_logprobs(tokenizer: Tokenizer, token: ScoredToken) -> dict[str, Any]:
    """The `logprobs` of /v1/chat/completions, of one token."""
    top = [token_logprob(tokenizer, one.id, one.logprob) for one in token.candidates]
    entry = token_logprob(tokenizer, token.id, token.logprob) | {"top_logprobs": top}
    return {"content": [entry], "refusal": None}


def token_logprob(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    """Text, log-probability and bytes of a token."""
    data = list(tokenizer.token_bytes(id))
    return {"token": tokenizer.token_text(id), "logprob": logprob, "bytes": data}
