"""Short pieces of prompts: read by the decode step, beside others with the bits of each alone."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from support.prefixes import IDS, model_of

from ys_llm.config.schema import GenerateConfig
from ys_llm.csrc import loader
from ys_llm.inference.decode_step import decode_rows
from ys_llm.inference.decoder import Decoder, decoder_of
from ys_llm.inference.generate import prefill, prefill_slices
from ys_llm.inference.generation import Generation, GenerationRequest
from ys_llm.inference.piece_rows import PieceRows, Reading
from ys_llm.inference.prompt_reader import PromptReader
from ys_llm.model.state import tensors_of

MODEL = model_of(("three_tier",))


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    if loader.build() is None:
        pytest.skip(loader.unavailable_reason())


def decoder() -> Decoder:
    found = decoder_of(MODEL)
    assert found is not None
    return found


def begun(rows: PieceRows, ids: list[int]) -> Reading:
    slices = prefill_slices(PromptReader(MODEL), ids, decoder=decoder())
    reading = Reading(Generation(GenerationRequest(ids, GenerateConfig())), slices)
    piece = next(slices)
    assert piece is not None and list(piece.ids) == ids
    rows.add(reading, piece)
    return reading


def test_pieces_come_and_go_and_each_has_the_bits_of_one_alone() -> None:
    rows = PieceRows(decode_rows(MODEL, decoder()))
    lengths = {begun(rows, IDS[start : start + n]): n for start, n in ((0, 9), (5, 3), (7, 30))}
    *_, given_up = lengths
    late: Reading | None = None
    for step in count(1):
        for reading, read in rows.step():
            ids = list(reading.generation.request.ids)
            alone = prefill(MODEL, ids, decoder=decoder())
            assert torch.equal(read.logits_V, alone.logits_V)
            assert all(map(torch.equal, tensors_of(read.state), tensors_of(alone.state)))
            assert step == (6 + 4 if reading is late else lengths[reading])
            with pytest.raises(StopIteration) as end:  # it was the only piece
                reading.slices.send(read)
            assert end.value.value.n_tokens == len(ids)
        if step == 4:
            assert rows.drop(lambda one: one is given_up.generation) == [given_up.generation]
        if step == 6:
            late = begun(rows, IDS[40:44])
        if not rows:
            break
    assert step == 10


def test_one_that_leaves_before_the_first_step_is_not_read() -> None:
    rows = PieceRows(decode_rows(MODEL, decoder()))
    leaving = begun(rows, IDS[:5])
    assert rows.drop(lambda one: one is leaving.generation) == [leaving.generation]
    assert not rows


def test_the_model_reads_long_pieces_and_what_is_scored_and_the_decoder_the_rest() -> None:
    passes, compiled = list[int](), decoder()
    hook = MODEL.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    try:
        short = prefill(MODEL, IDS[:255], decoder=compiled)
        assert passes == []
        long = prefill(MODEL, IDS[:330], decoder=compiled)
        assert passes == [256]
        plain = [prefill(MODEL, IDS[:n]) for n in (255, 330)]
    finally:
        hook.remove()
    for found, expected in zip((short, long), plain, strict=True):
        assert (found.recent, found.n_tokens) == (expected.recent, expected.n_tokens)
        torch.testing.assert_close(found.logits_V, expected.logits_V, atol=1e-4, rtol=1e-4)
    scored: list[int] = []
    prefill(MODEL, IDS[:40], decoder=decoder(), observe=lambda token: scored.append(token.id))
    assert scored == IDS[1:40]


def test_what_would_read_too_many_weights_is_left_to_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Decoder, "bytes_per_token", property(lambda _: 32 << 20))
    assert [decoder().reads_pieces_of(n) for n in (1, 32, 33, 255)] == [True, True, False, False]
    monkeypatch.setattr(Decoder, "bytes_per_token", property(lambda _: 1 << 20))
    assert [decoder().reads_pieces_of(n) for n in (255, 256)] == [True, False]
