"""What the commands of a conversation tell: where it stands, its memories, why it said that."""

from __future__ import annotations

import math
import sys

from ys_llm.config.strict_reader import to_plain
from ys_llm.config.yaml_io import dump_inline
from ys_llm.errors import UserError
from ys_llm.inference.conversation import Conversation
from ys_llm.inference.copied import Copied
from ys_llm.inference.pictures import columns, memory_lines, surprise_text
from ys_llm.inference.prefix_cache import MEGABYTE
from ys_llm.inference.sampling import log_softmax
from ys_llm.inference.session import Snapshot
from ys_llm.model.state import state_bytes
from ys_llm.system.terminal import has_colour, is_plain, printable

_N_CANDIDATES = 5
_LED_TO = 4  # tokens that are shown before one that was copied
_NATS_PER_BIT = math.log(2)


def show(conversation: Conversation, argument: str = "") -> None:
    """The settings, the text, and what can be undone."""
    session, loaded = conversation.session, conversation.engine.loaded
    for name, value in to_plain(conversation.sampling).items():
        print(f"{name:18} {dump_inline(value)}")
    print(f"{'carry':18} {'on' if conversation.carries else 'off'}")
    ring, now = session.ring, session.at.now
    print(f"{'undo_mb':18} {ring.max_bytes // MEGABYTE}")
    print(f"model              {loaded.config.run}, step {loaded.step:,}")
    size = "" if now is None else f", a state of {state_bytes(now.state) / 1000:,.1f} kB"
    print(f"text               {session.at.n_tokens:,} tokens{size}")
    kept = f"{len(ring.snapshots)} steps in {ring.n_bytes / MEGABYTE:,.2f} MB"
    print(f"can be undone      {kept} of {ring.max_bytes / MEGABYTE:,.0f}")
    print(f"branch             {conversation.branch}, of {len(conversation.branches)}")
    print(f"muted              {conversation.muted_names() or 'nothing'}")
    print(f"log                {conversation.log.path if conversation.log else 'off'}")


def where(conversation: Conversation) -> None:
    """Tell where the session stands."""
    at = conversation.session.at
    text = ending(conversation, at)
    print(f"{at.n_tokens:,} tokens: {text}" if at.n_tokens else "at the beginning: nothing is read")


def ending(conversation: Conversation, at: Snapshot) -> str:
    """The end of a text on one line; a space stands where a prompt begins or ends."""
    parts: list[list[int]] = [[]]
    controls = conversation.engine.loaded.tokenizer.controls.values()
    for id in at.tail:
        if id in controls:
            parts.append([])
        else:
            parts[-1].append(id)
    return short(" ".join(map(conversation.engine.loaded.tokenizer.decode, parts)), last=True)


def short(text: str, *, last: bool = False) -> str:
    """A text on one line, its beginning or its end."""
    text, most = printable(" ".join(text.split())), max(20, columns() - 30)
    if len(text) <= most:
        return text
    return f"...{text[-most:]}" if last else f"{text[:most]}..."


def state(conversation: Conversation, argument: str) -> None:
    """Every memory, with its latest change."""
    at = conversation.session.at
    if at.now is None:
        return print("nothing was read yet: every memory is empty")
    memories = conversation.session.memories()
    for line in memory_lines(memories, at.n_tokens, plain=is_plain()):
        print(line)
    if conversation.session.muted:
        print(f"muted: {conversation.muted_names()}")


def why(conversation: Conversation, argument: str) -> None:
    """The candidates for the last token, and what of the answer was copied."""
    session = conversation.session
    if session.at.answer is None:
        return print("nothing was answered yet")
    _explain_last(conversation)
    if session.engine.loaded.model.copy_tier is None:
        return print("this model has no copy tier (model.copy.window): nothing was copied")
    tokens = list(zip(session.at.answer.ids, session.copied(), strict=False))
    copied = [(id, one) for id, one in tokens if one.share > 0.5]
    print(f"{len(copied)} of {len(tokens)} tokens were copied for the most part")
    for id, one in copied:
        text = _token(conversation, id)
        print(f"{one.share:6.0%}  {text} from {_origin(conversation, one)}")


def _explain_last(conversation: Conversation) -> None:
    before = conversation.session.fork()
    answer = before.at.answer
    assert answer is not None
    before.undo_tokens(1)
    assert before.at.now is not None
    logprobs_V = log_softmax(before.at.now.logits_V).double()
    entropy = float(-(logprobs_V.exp() * logprobs_V).nansum()) / _NATS_PER_BIT
    best, ids = logprobs_V.topk(min(_N_CANDIDATES, len(logprobs_V)))
    shown = [
        f"{p:.0%} {_token(conversation, id)}"
        for id, p in zip(ids.tolist(), best.exp().tolist(), strict=True)
    ]
    last = _token(conversation, answer.ids[-1])
    share = float(logprobs_V[answer.ids[-1]].exp())
    print(f"the last token, {last}, had {share:.0%}; entropy {entropy:.2f} bits; best:")
    print("  " + "  ".join(shown))


def _origin(conversation: Conversation, copied: Copied) -> str:
    source, at = copied.sources[0], conversation.session.at
    if source.position is None:
        return "far above"
    index = source.position - (at.n_tokens - len(at.tail))
    ids = at.tail[max(0, index + 1 - _LED_TO) : index + 1] if index >= 0 else ()
    text = "".join(map(conversation.engine.loaded.tokenizer.token_text, ids))
    return f"token {source.position}: {text!r}"


def _token(conversation: Conversation, id: int) -> str:
    return repr(conversation.engine.loaded.tokenizer.token_text(id))


def surprise(conversation: Conversation, argument: str) -> None:
    """A text coloured by how little the model expected it."""
    if not argument:
        raise UserError("/surprise needs a text", "Type /surprise and the text after it.")
    tokenizer = conversation.engine.loaded.tokenizer
    tokens = conversation.session.score(argument)
    pairs = [(tokenizer.decode([token.id]), token.logprob) for token in tokens]
    print(surprise_text(pairs, colour=has_colour(sys.stdout)))
    bits = -sum(token.logprob for token in tokens) / _NATS_PER_BIT
    each = f"{bits / len(tokens):.2f} a token, {bits / len(argument.encode()):.3f} a byte"
    print(f"{bits:.1f} bits: {each}, after {conversation.session.at.n_tokens:,} tokens")
