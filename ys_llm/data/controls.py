"""Control tokens: names that no text is encoded to, and which of them a tokenizer has."""

import tokenizers

from ys_llm.data.records import END, START

CONTROLS = (END, START)  # ids 0 and 1 of every tokenizer
ROLE_TOKENS = ("<system>", "<user>", "<assistant>", "<tool>")  # of a conversation (`chat.py`)
MOST_CONTROLS = 64
_SPARES = tuple(f"<spare {n}>" for n in range(1, MOST_CONTROLS))
FURTHER_CONTROLS = (*ROLE_TOKENS, *_SPARES)[: MOST_CONTROLS - len(CONTROLS)]
_FORM = (True, False, False, False, False)


def controls_of(library: tokenizers.Tokenizer) -> dict[str, int]:
    """Return the ids of the control tokens; raise ValueError for an added token of another kind."""
    added = library.get_added_tokens_decoder()
    for token in added.values():
        if _form(token) != _FORM or token.content not in (*CONTROLS, *FURTHER_CONTROLS):
            raise ValueError(f"{token.content[:40]!r} is a control token of another program")
    controls = {token.content: id for id, token in sorted(added.items())}
    if [controls.get(name) for name in CONTROLS] != [0, 1]:
        raise ValueError("<end> and <start> are not its control tokens 0 and 1")
    return controls


def _form(token: tokenizers.AddedToken) -> tuple[bool, ...]:
    return token.special, token.normalized, token.lstrip, token.rstrip, token.single_word
