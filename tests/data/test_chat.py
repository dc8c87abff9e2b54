"""Conversations become tokens span by span, so that no text can be read as a control token."""

import random
from pathlib import Path
from typing import get_args

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.sources import ROOT

from ys_llm.config.schema import ModelConfig, TokenizerKind
from ys_llm.config.sources import load_config
from ys_llm.data.chat import (
    ROLES,
    PreferencePair,
    Role,
    Turn,
    chat_template,
    render,
    render_pair,
    rows_to_begin_as,
)
from ys_llm.data.controls import CONTROLS, ROLE_TOKENS
from ys_llm.data.fast_tokenizer import fast_tokenizer
from ys_llm.data.tokenizer import Tokenizer, train_tokenizer
from ys_llm.errors import UserError
from ys_llm.model.language_model import Model
from ys_llm.model.vocabulary import with_more_tokens
from ys_llm.runs.model_files import load_weights, weights

KINDS: tuple[TokenizerKind, ...] = get_args(TokenizerKind)
TEXTS = ["The keeper says <end> and <user>, then smiles.", "A keeper, a boat and 12 gulls."] * 2
TWO_TURNS = [
    Turn("system", "Be kind."),
    Turn("user", "Type <end>, <assistant> and </s>."),
    Turn("assistant", "<end>"),
    Turn("user", "Again"),
    Turn("assistant", "No."),
]
any_turn = st.builds(
    Turn,
    st.sampled_from(ROLES),
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.lists(st.sampled_from([*CONTROLS, *ROLE_TOKENS, "<", "user>", " "])).map("".join),
    ),
)


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: train_tokenizer(TEXTS, kind=kind, vocab_size=300) for kind in KINDS}


def shown(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The tokens as one line, with the control tokens between bars."""
    controls = set(tokenizer.controls.values())
    parts = [
        f"|{tokenizer.token_text(id)}|" if id in controls else tokenizer.decode([id]) for id in ids
    ]
    return "".join(parts)


def test_only_replies_and_the_end_of_each_are_learned(trained: dict[str, Tokenizer]) -> None:
    tokenizer = trained["bytes"].with_roles()
    rendered = render(TWO_TURNS, tokenizer)
    assert shown(tokenizer, rendered.ids) == (
        "|<end>||<system>|Be kind.|<user>|Type <end>, <assistant> and </s>."
        "|<assistant>|<end>|<end>||<user>|Again|<assistant>|No.|<end>|"
    )
    learned = [id for id, weight in zip(rendered.ids, rendered.weights, strict=True) if weight]
    assert shown(tokenizer, learned) == "<end>|<end>|No.|<end>|"
    assert rendered.n_learned == len(learned) == 10
    assert set(rendered.weights) == {0.0, 1.0}


@pytest.mark.parametrize("kind", KINDS)
@given(turns=st.lists(any_turn, max_size=5))
def test_a_text_is_never_a_control_token(
    trained: dict[str, Tokenizer], kind: TokenizerKind, turns: list[Turn]
) -> None:
    tokenizer = trained[kind].with_roles()
    rendered = render(turns, tokenizer)
    controls = set(tokenizer.controls.values())
    texts: list[list[int]] = []
    for id in rendered.ids:
        texts.append([]) if id in controls else texts[-1].append(id)
    expected = [""]
    for turn in turns:
        expected += [turn.text, ""] if turn.role == "assistant" else [turn.text]
    assert [tokenizer.decode(ids) for ids in texts] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_roles_are_added_after_all_other_tokens(
    trained: dict[str, Tokenizer], kind: TokenizerKind
) -> None:
    plain = trained[kind]
    with pytest.raises(UserError, match="no control tokens for the roles"):
        render(TWO_TURNS, plain)
    with_roles = plain.with_roles()
    n = plain.vocab_size
    assert [with_roles.controls[name] for name in ROLE_TOKENS] == [n, n + 1, n + 2, n + 3]
    assert with_roles.vocab_size == n + 4
    assert with_roles.with_roles() is with_roles
    assert with_roles.encode(TEXTS[0]) == plain.encode(TEXTS[0])
    assert [with_roles.token_bytes(id) for id in range(n)] == [*map(plain.token_bytes, range(n))]
    assert Tokenizer(with_roles.saved).controls == with_roles.controls


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_can_begin_with_sixteen_control_tokens(kind: TokenizerKind) -> None:
    tokenizer = train_tokenizer(TEXTS, kind=kind, vocab_size=300, control_tokens=16)
    ids = [0, 1, *range(258, 272)]
    assert list(tokenizer.controls.values()) == ids
    assert list(tokenizer.controls)[:6] == [*CONTROLS, *ROLE_TOKENS]
    assert tokenizer.vocab_size <= 300
    assert tokenizer.with_roles() is tokenizer
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]
    assert tokenizer.decode(ids) == ""


def test_the_tokenizer_of_the_lillm_presets_has_8192_tokens_with_sixteen_controls() -> None:
    draw = random.Random(3)
    words = ["".join(draw.choices("abcdefghi é日", k=draw.randint(4, 9))) for _ in range(6_000)]
    config = load_config(ROOT / "configs/lillm_39m.yaml").config.tokenizer
    tokenizer = train_tokenizer(
        [" ".join(words * 2)],
        kind=config.kind,
        vocab_size=config.vocab_size,
        control_tokens=config.control_tokens,
    )
    assert (tokenizer.vocab_size, len(tokenizer.controls)) == (8192, 16)
    text = "Ünknown 語 \x00 🇫🇷 <end> "
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_both_ends_of_a_pair_are_learned_and_nothing_before_them(
    trained: dict[str, Tokenizer],
) -> None:
    tokenizer = trained["bytes"].with_roles()
    pair = PreferencePair(
        tuple(TWO_TURNS[:4]), (Turn("assistant", "Yes."),), (Turn("assistant", "No!"),)
    )
    chosen, rejected = render_pair(pair, tokenizer)
    assert chosen.ids[: -len("Yes.") - 1] == rejected.ids[: -len("No!") - 1]
    assert (chosen.n_learned, rejected.n_learned) == (5, 4)
    assert tokenizer.decode(rejected.ids[-4:]) == "No!"


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("block", ["pre_norm", "plain"])
def test_more_tokens_leave_the_logits_of_the_others_as_they_are(is_tied: bool, block: str) -> None:
    before = train_tokenizer([], kind="bytes", vocab_size=258)
    after = before.with_roles()
    config = ModelConfig(d_model=16, n_layers=1, d_mlp=16, block=block, tie_embeddings=is_tied)  # type: ignore[arg-type]
    old, new = (Model(config, vocab_size=t.vocab_size).eval().double() for t in (before, after))
    grown = with_more_tokens(weights(old), rows_to_begin_as(before, after))
    load_weights(new, grown, Path("model.safetensors"))
    tokens_BT = torch.arange(2, 32)[None]
    with torch.no_grad():
        old_BTV, new_BTV = old(tokens_BT)[0], new(tokens_BT)[0]
    torch.testing.assert_close(new_BTV[..., :258], old_BTV, rtol=0, atol=1e-12)
    torch.testing.assert_close(new_BTV[..., 258:], old_BTV.mean(-1, keepdim=True).expand(1, 30, 4))


def test_new_embeddings_begin_as_those_of_like_meaning() -> None:
    before = train_tokenizer([], kind="bytes", vocab_size=258)
    assert rows_to_begin_as(before, before.with_roles()) == [0, 0, 1, 0]
    rows = torch.arange(258.0)[:, None]
    grown = with_more_tokens({"embedding.weight": rows, "output.weight": rows}, [0, 0, 1, 0])
    assert grown["embedding.weight"][258:, 0].tolist() == [0, 0, 1, 0]


def test_every_role_has_a_token() -> None:
    assert set(ROLES) == set(get_args(Role))
    assert [f"<{role}>" for role in ROLES] == list(ROLE_TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "bpe_joiner", "bytes", "chars"])
def test_transformers_renders_the_template_to_the_same_ids(
    trained: dict[str, Tokenizer], kind: TokenizerKind
) -> None:
    tokenizer = trained[kind].with_roles()
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(fast_tokenizer(tokenizer))
    )
    fast.chat_template = chat_template()
    turns = [Turn("system", "Be kind."), Turn("user", 'The "keeper"\n(says) 12'), *TWO_TURNS[3:]]
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    found = fast.apply_chat_template(messages, return_dict=False)
    assert found == render(turns, tokenizer).ids
    asked = fast.apply_chat_template(messages[:2], add_generation_prompt=True, return_dict=False)
    ids = render(turns[:2], tokenizer).ids
    assert asked == [*ids, tokenizer.controls["<assistant>"]]
    with pytest.raises(Exception, match="control token <end>"):
        fast.apply_chat_template([{"role": "user", "content": "an <end> typed"}])
