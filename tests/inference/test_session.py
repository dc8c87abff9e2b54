"""A session's state is exact however it was reached: undone, forked, saved, beside others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from support.hostile_contents import pickles
from support.prefixes import LAYERS, loaded_run, model_of

from ys_llm.config.schema import GenerateConfig
from ys_llm.errors import UserError
from ys_llm.inference import session as session_module
from ys_llm.inference.engine import Engine
from ys_llm.inference.memories import memories_called, memory_names, shown
from ys_llm.inference.prefix_cache import PrefixCache
from ys_llm.inference.prefix_file import Fingerprint, digest_of, fingerprint_of
from ys_llm.inference.session import Ring, Session, Snapshot
from ys_llm.inference.session_file import (
    load_session,
    save_session,
    saved_states,
    state_path,
)
from ys_llm.model.state import flatten
from ys_llm.runs.model_files import LoadedRun

TESTS = Path(__file__).resolve().parents[1]
SAMPLING = GenerateConfig(temperature=1.0, max_tokens=12, seed=4)
OWN = Fingerprint("m", "t", "s")
TEXT = "the cat sat on the mat "
by_layers = pytest.mark.parametrize("layers", LAYERS, ids="+".join)


def lively_run(layers: tuple[str, ...] = ("three_tier",)) -> LoadedRun:
    """With all memories in use: those of a new model begin small, or at 0."""
    loaded = loaded_run(layers)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return loaded


@cache
def engine_of(layers: tuple[str, ...] = ("three_tier",)) -> Engine:
    return Engine(lively_run(layers))


def session_of(*texts: str, layers: tuple[str, ...] = ("three_tier",)) -> Session:
    session = Session(engine_of(layers))
    for text in texts:
        with session.step():
            session.read([text])
            write(session)
    return session


def write(session: Session, seed: int = 4, tokens: int = 12) -> list[int]:
    sampling = replace(SAMPLING, seed=seed, max_tokens=tokens)
    return [token.id for token in session.generate(sampling)]


def same(found: Snapshot, expected: Snapshot) -> bool:
    if found.now is None or expected.now is None:
        return found.now is expected.now
    left, right = flatten(found.now.state), flatten(expected.now.state)
    return (
        torch.equal(found.now.logits_V, expected.now.logits_V)
        and left.keys() == right.keys()
        and all(torch.equal(left[name], right[name]) for name in left)
        and found.now.recent == expected.now.recent
        and found.now.n_tokens == expected.now.n_tokens
        and found.tail == expected.tail
    )


# --- reading and writing ---


def test_the_first_answer_is_the_engines_own() -> None:
    engine, session = engine_of(), Session(engine_of())
    session.read(["the ", "cat"], is_prompt=True)
    assert tuple(write(session)) == engine.answer("the cat", SAMPLING).ids
    session.read(["the cat"], anew=True)
    assert tuple(write(session)) == engine.answer("the cat", SAMPLING, raw=True).ids


def test_a_text_goes_on_where_it_stopped() -> None:
    session = session_of("the cat")
    whole = [0, *b"the cat"]
    assert session.at.answer is not None
    written = [id for id in session.at.answer.ids if id]
    tokens = [whole[0], *(byte + 2 for byte in whole[1:]), *written]
    assert session.at.n_tokens == len(tokens)
    assert list(session.at.tail) == tokens
    session.read([" sat"])
    tokens += [byte + 2 for byte in b" sat"]
    with torch.inference_mode():
        logits, _ = engine_of().loaded.model(torch.tensor([tokens]))
    assert session.at.now is not None
    torch.testing.assert_close(session.at.now.logits_V, logits[0, -1], atol=1e-4, rtol=1e-4)


def test_an_answer_stopped_early_is_one_of_fewer_tokens() -> None:
    session, other = (Session(engine_of()) for _ in range(2))
    for one in (session, other):
        one.read(["the cat"])
    with closing(session.generate(SAMPLING)) as tokens:
        first = [token.id for token in islice(tokens, 5)]
    assert first == write(other, tokens=5)
    assert same(session.at, other.at)


def test_an_end_is_written_and_not_read() -> None:
    run = loaded_run()
    with torch.no_grad():  # every logit the same, so that greedy takes the smallest id: <end>
        run.model.output.weight.zero_()
    session = Session(Engine(run))
    session.read(["the cat"])
    before = session.at
    ids = [token.id for token in session.generate(replace(SAMPLING, temperature=0.0))]
    assert ids == [0]
    assert session.at.n_tokens == before.n_tokens
    assert session.at.answer is not None and session.at.answer.ids == (0,)


def test_an_interrupted_reading_has_read_nothing() -> None:
    session = session_of("the cat")
    before = session.at

    def pieces() -> Any:
        yield TEXT * 40
        raise KeyboardInterrupt

    for anew in (False, True):
        with pytest.raises(KeyboardInterrupt), session.step():
            session.read(pieces(), anew=anew)
        assert session.at is before
    assert len(session.ring.snapshots) == 1


def test_an_interrupted_decode_step_leaves_what_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    session, other = (Session(engine_of()) for _ in range(2))
    for one in (session, other):
        one.read(["the cat"])
    rows = session._rows(session.at.now)  # type: ignore[arg-type]
    n_steps, step = 0, rows.step

    def interrupted(ids: list[int]) -> Any:
        nonlocal n_steps
        n_steps += 1
        logits = step(ids)
        if n_steps == 4:
            raise KeyboardInterrupt  # the state is a step ahead of what is known of it
        return logits

    monkeypatch.setattr(rows, "step", interrupted)
    monkeypatch.setattr(session, "_rows", lambda _: rows)
    found: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        for token in session.generate(SAMPLING):
            found.append(token.id)
            monkeypatch.undo()
            monkeypatch.setattr(rows, "step", interrupted)
    assert found == write(other, tokens=4)
    assert same(session.at, other.at)


def test_the_cache_gives_the_same_bits() -> None:
    cached = Engine(lively_run(), PrefixCache(1 << 24))
    sessions = [Session(engine) for engine in (cached, cached, engine_of())]
    counts = []
    for session in sessions:
        counts.append(session.read([TEXT * 9]))
        write(session)
    assert [count.n_cached for count in counts] == [0, 208, 0]
    assert all(same(session.at, sessions[0].at) for session in sessions)


@pytest.mark.parametrize("muted", ["", "global"])
def test_a_text_is_scored_as_if_it_were_read(muted: str) -> None:
    session = session_of("the cat")
    if muted:
        session.muted = memories_called(engine_of().loaded.model, muted)
    before = session.at
    scored = session.score(TEXT * 4, n_candidates=2)
    assert session.at is before
    assert [token.id for token in scored] == [byte + 2 for byte in (TEXT * 4).encode()]
    for token in scored[:3]:
        assert session.at.now is not None
        expected = torch.log_softmax(session.at.now.logits_V.double(), -1)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
        assert token.candidates[0].logprob == pytest.approx(float(expected.max()), abs=1e-4)
        session.read_ids([token.id])
    assert Session(engine_of()).score("") == []


# --- undo and fork ---

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["read", "write", "undo", "fork", "tokens"]), st.integers(1, 90)),
    max_size=8,
)


def replayed(done: list[tuple[str, int]]) -> Session:
    """A session that did this and nothing else."""
    session = Session(engine_of())
    for kind, number in done:
        act(session, kind, number)
    return session


def act(session: Session, kind: str, number: int) -> None:
    if kind == "read" or session.at.now is None:
        session.read([TEXT * number])
    else:
        write(session, seed=number, tokens=1 + number % 7)


@settings(max_examples=10)
@given(operations=OPERATIONS)
def test_whatever_was_undone_and_forked_a_state_is_that_of_what_is_left(
    operations: list[tuple[str, int]],
) -> None:
    session, done = Session(engine_of()), list[tuple[str, int]]()
    forked: list[tuple[Session, list[tuple[str, int]]]] = []
    for kind, number in operations:
        if kind == "undo":
            if done:
                session.undo(1 + number % len(done))
                done = done[: len(done) - (1 + number % len(done))]
        elif kind == "fork":
            forked.append((session, [*done]))
            session = session.fork()
        elif kind in ("read", "write"):
            with session.step():
                act(session, kind, number)
            done.append((kind, number))
    for one, what in [(session, done), *forked]:
        assert same(one.at, replayed(what).at)


def test_tokens_that_are_taken_back_were_never_written() -> None:
    session = session_of("the cat")
    assert session.at.answer is not None
    n_written = len(session.at.answer.ids)
    for n_tokens in (1, n_written - 1):
        other = Session(engine_of())
        other.read(["the cat"])
        write(other, tokens=n_written - n_tokens)
        fewer = session.fork()
        fewer.undo_tokens(n_tokens)
        assert same(fewer.at, other.at)
        fewer.undo()
        assert fewer.at.now is None
    with pytest.raises(UserError, match="the last answer has 12"):
        session.undo_tokens(13)


def test_the_ring_is_bounded_and_says_how_far_it_goes() -> None:
    session = session_of("the cat")
    each = session.at.n_bytes
    session.ring = Ring(max_bytes=5 * each // 2)
    for _ in range(4):
        with session.step():
            session.read([" sat"])
    assert len(session.ring.snapshots) <= 2
    assert session.ring.n_bytes == sum(one.n_bytes for one in session.ring.snapshots)
    before = session.at
    with pytest.raises(UserError, match=r"3 steps cannot be undone: the last 2 are kept"):
        session.undo(3)
    assert session.at is before
    session.undo(2)
    assert not session.ring.snapshots and session.ring.n_bytes == 0


def test_undo_of_a_long_reading_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of("the cat")
    before = session.at
    with session.step():
        session.read([TEXT] * 500)
    assert session.at.n_tokens > 10_000

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(session_module, "prefill", never)
    monkeypatch.setattr(session, "_rows", never)
    session.undo()
    assert session.at is before


def test_sessions_beside_each_other_are_each_the_one_it_is_alone() -> None:
    def begun(number: int) -> Session:
        session = Session(engine_of())
        session.read([f"{number} " + TEXT * (number % 5)])
        return session

    sessions = [begun(number) for number in range(64)]
    written = [
        session.generate(replace(SAMPLING, seed=number, max_tokens=6))
        for number, session in enumerate(sessions)
    ]
    for _ in range(7):
        for tokens in written:
            next(tokens, None)
    for number, session in enumerate(sessions[::7]):
        alone = begun(7 * number)
        write(alone, seed=7 * number, tokens=6)
        assert same(session.at, alone.at)


# --- memories ---


def test_memories_have_names() -> None:
    model = engine_of().loaded.model
    assert memory_names(model) == ["1", "2", "main", "local_summary", "global_summary"]
    assert shown(memories_called(model, "global")) == "1.global_summary, 2.global_summary"
    assert shown(memories_called(model, "2")) == "2.global_summary, 2.local_summary, 2.main"
    assert shown(memories_called(model, "1.main")) == "1.main"
    for wrong in ("", "3", "glob.al", "copy", "0"):
        with pytest.raises(UserError, match="has no memory") as raised:
            memories_called(model, wrong)
        assert "local_summary" in raised.value.fix


def test_a_memory_of_every_token_is_refused() -> None:
    model = engine_of(("softmax_attention", "three_tier")).loaded.model
    with pytest.raises(UserError, match="layer 1 keeps every token"):
        memories_called(model, "1")
    assert shown(memories_called(model, "2.main")) == "2.main"


def test_a_muted_memory_contributes_nothing() -> None:
    """As in a model whose global summaries are zero whatever they read."""
    session, silent = Session(engine_of()), lively_run()
    with torch.no_grad():
        for mixer in silent.model.mixers:
            mixer.global_summary.output_shaper.zero_()  # type: ignore[attr-defined]
    session.muted = memories_called(engine_of().loaded.model, "global")
    session.read([TEXT * 8])
    written, other = write(session), Session(Engine(silent))
    other.read([TEXT * 8])
    assert written == write(other)
    assert session.at.now is not None and other.at.now is not None
    torch.testing.assert_close(session.at.now.logits_V, other.at.now.logits_V, atol=1e-4, rtol=1e-4)
    heard = Session(engine_of())
    heard.read([TEXT * 8])
    assert heard.at.now is not None
    assert not torch.allclose(heard.at.now.logits_V, session.at.now.logits_V, atol=1e-4)


@by_layers
def test_every_memory_that_can_be_muted_is_without_effect_on_later_tokens(
    layers: tuple[str, ...],
) -> None:
    """With all of them muted, a token follows from nothing but the one before it."""
    model = model_of(layers)
    loaded = replace(loaded_run(), model=model)
    muted = set[str]()
    for name in memory_names(model):
        try:
            muted |= memories_called(model, name)
        except UserError as error:
            assert "keeps every token" in error.problem
    everything = {name for name in flatten(model.init_state(1)) if name != "position_B"}
    session = Session(Engine(loaded))
    session.muted = frozenset(muted)
    session.read_ids([1, 2, 3, 9])
    assert session.at.now is not None and bool(session.at.now.logits_V.isfinite().all())
    if muted == everything:
        other = Session(Engine(loaded))
        other.muted = session.muted
        other.read_ids([4, 5, 6, 9])
        assert other.at.now is not None
        assert torch.equal(session.at.now.logits_V, other.at.now.logits_V)


def test_the_changes_of_each_memory_are_told() -> None:
    session = Session(engine_of())
    session.read_ids(range(2, 2 + 70))
    found = {memory.name: memory for memory in session.memories()}
    assert list(found)[:3] == ["1.main", "1.local_summary", "1.global_summary"]
    assert found["1.main"].changed_at == 70
    assert found["2.local_summary"].changed_at is None  # before the last piece, of 6 tokens
    write(session, tokens=20)
    found = {memory.name: memory for memory in session.memories()}
    n_tokens = session.at.n_tokens
    assert found["2.main"].changed_at == n_tokens
    assert found["2.local_summary"].changed_at == n_tokens // 16 * 16
    assert found["2.global_summary"].changed_at is None
    assert found["2.main"].norm > 0 and (found["2.main"].change or 0) > 0


# --- on disk ---


def saved(path: Path) -> Session:
    session = session_of("the cat", " sat")
    save_session(session, path, OWN)
    return session


def load(path: Path, fingerprint: Fingerprint = OWN) -> Snapshot:
    return load_session(path, engine_of().loaded.model, fingerprint)[0]


@by_layers
def test_what_is_loaded_is_what_was_saved(layers: tuple[str, ...], tmp_path: Path) -> None:
    session = session_of("the cat", " sat", layers=layers)
    save_session(session, tmp_path / "x", OWN)
    at, muted = load_session(tmp_path / "x", engine_of(layers).loaded.model, OWN)
    assert same(at, session.at) and not muted
    other = Session(engine_of(layers), at)
    assert write(other, seed=9) == write(session, seed=9)
    assert same(other.at, session.at)


LOADED_ELSEWHERE = """
import sys
from pathlib import Path
from support.prefixes import loaded_run
from ys_llm.inference.prefix_file import fingerprint_of
from ys_llm.inference.session_file import load_session
loaded = loaded_run()
at, _ = load_session(Path(sys.argv[1]), loaded.model, fingerprint_of(loaded))
print(at.n_tokens, at.now.logits_V.numpy().tobytes().hex())
"""


def test_another_process_loads_the_same_bits(tmp_path: Path) -> None:
    session = Session(Engine(loaded_run()))
    session.read(["the cat"])
    write(session)
    save_session(session, tmp_path / "x", fingerprint_of(session.engine.loaded))
    ended = subprocess.run(
        [sys.executable, "-c", LOADED_ELSEWHERE, str(tmp_path / "x")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS)))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert session.at.now is not None
    bits = session.at.now.logits_V.numpy().tobytes().hex()
    assert ended.stdout.split() == [str(session.at.n_tokens), bits]


def test_states_have_names_in_the_folder_of_their_run(tmp_path: Path) -> None:
    for name in ("fox", "a.fox-2"):
        saved(state_path(tmp_path, name))
    assert saved_states(tmp_path) == ["a.fox-2", "fox"]
    with pytest.raises(UserError, match="there is no saved state hen") as raised:
        load(state_path(tmp_path, "hen"))
    assert raised.value.fix == "Choose one of: a.fox-2, fox"
    for wrong in ("", "../x", "a/b", ".x", "x" * 101, "a b", "x\n"):
        with pytest.raises(UserError, match="is no name"):
            state_path(tmp_path, wrong)
    with pytest.raises(UserError, match="nothing was read yet"):
        save_session(Session(engine_of()), tmp_path / "x", OWN)


@pytest.mark.parametrize("field", ["model", "tokenizer", "software"])
def test_the_state_of_another_model_is_refused(tmp_path: Path, field: str) -> None:
    saved(tmp_path / "x")
    with pytest.raises(UserError, match=f"another {field}"):
        load(tmp_path / "x", replace(OWN, **{field: "other"}))


def test_truncated_changed_and_foreign_files_are_refused_and_run_nothing(tmp_path: Path) -> None:
    path, marker = tmp_path / "x", tmp_path / "marker"
    saved(path)
    content = path.read_bytes()
    wrong = [content[:end] for end in (0, 7, 8, 200, len(content) // 2, len(content) - 1)]
    wrong += [
        content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        for at in range(0, len(content), len(content) // 23)
    ]
    wrong += [b"Once upon a time", *pickles(marker).values()]
    wrong.append(safetensors.torch.save({"logits": torch.zeros(3)}, {"format": "pt"}))
    for changed in wrong:
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"not a whole saved state|another") as raised:
            load(path)
        assert "\n" not in str(raised.value)
    assert not marker.exists()
    with pytest.raises(UserError, match="it is no file"):
        load(tmp_path)


def tensors(**changes: torch.Tensor) -> Callable[[dict[str, Any], Any], None]:
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return lambda found, _: found.update(named)


def entries(**changes: Any) -> Callable[[Any, dict[str, Any]], None]:
    return lambda _, described: described.update(changes)


HOSTILE: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "another tensor": tensors(state__extra=torch.zeros(1)),
    "no logits": lambda found, _: found.pop("logits"),
    "logits of another size": tensors(logits=torch.zeros(7)),
    "logits that are no numbers": tensors(logits=torch.full((258,), torch.nan)),
    "two rows": tensors(state__layers__0__main=torch.zeros(2, 256)),
    "another width": tensors(state__layers__0__main=torch.zeros(1, 7)),
    "another time": tensors(state__position_B=torch.tensor([-3])),
    "ids of no token": entries(tail=[258]),
    "ids that are no numbers": entries(recent=["a"]),
    "too many ids": entries(tail=[3] * 5000),
    "no list": entries(tail=3),
    "unknown memories": entries(muted=["layers.7.main"]),
    "nothing known": lambda _, described: described.clear(),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_contents_are_refused_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]
) -> None:
    path = tmp_path / "x"
    saved(path)
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    described = json.loads(header["entries"])
    change(found, described)
    header["entries"] = json.dumps(described)
    header["digest"] = digest_of(found, header["entries"])
    path.write_bytes(safetensors.torch.save(found, header))
    with pytest.raises(UserError, match="not a whole saved state") as raised:
        load(path)
    assert "\n" not in str(raised.value)
