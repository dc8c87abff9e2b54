"""A tokenizer of kind `words` for transformers: capitals are written as markers before words.

`tokenizer.json` expects text with these markers, which no normalizer of the library can write. All
else is that of a fast tokenizer; offsets are those of the marked text.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from ys_llm.data.case_markers import decode_case, encode_case


class YsTokenizer(PreTrainedTokenizerFast):
    """A fast tokenizer that writes and reads the markers."""

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> Any:
        return super()._encode_plus(_marked(text), _marked(text_pair), **kwargs)

    def _decode(self, *args: Any, **kwargs: Any) -> str:
        return decode_case(super()._decode(*args, **kwargs))


def _marked(text: Any) -> Any:
    """A text, or lists of texts, with markers."""
    if isinstance(text, str):
        return encode_case(text)
    return [_marked(one) for one in text] if isinstance(text, list | tuple) else text
