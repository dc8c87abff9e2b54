"""Fine-tuning: `train` with a base, by every method, and what each leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.training_runs import (
    SMALL,
    SMALL_STATE,
    assert_same_training,
    column,
    last_tensors,
    sentences,
    write_corpus,
)

from ys_llm.config.schema import GenerateConfig
from ys_llm.config.sources import load_config
from ys_llm.errors import UserError
from ys_llm.inference.conversation import Conversation
from ys_llm.inference.engine import Engine
from ys_llm.inference.prefix_cache import PrefixCache
from ys_llm.inference.prefix_file import fingerprint_of
from ys_llm.inference.repl_commands import command_of
from ys_llm.inference.session import Session
from ys_llm.inference.session_file import load_session
from ys_llm.model.lora import Adapters
from ys_llm.runs.adapters import read_adapter
from ys_llm.runs.merge import merge_run
from ys_llm.runs.model_files import load_run, read_json, weights
from ys_llm.serving.limits import ApiError, Limits
from ys_llm.serving.metrics import Metrics
from ys_llm.serving.models import Models
from ys_llm.system.files import sha256_of
from ys_llm.training.loop import TrainSummary, train

Tune = Callable[..., TrainSummary]
LORA = ("sft.method=lora", "sft.lora.rank=2")
STATE = ("sft.method=state", "train.learning_rate=0.1")
METHODS = {"full": ("sft.method=full",), "lora": LORA, "state": STATE}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a trained base, in runs/base, its text, and records to fine-tune on."""
    folder = tmp_path_factory.mktemp("sft")
    write_corpus(folder / "corpus", sentences(40))
    records = "".join(
        f"Which pet is number {n}?<start>The {pet}.<end>\n"
        for n, pet in enumerate(["cat", "dog", "fox", "cow"] * 8)
    )
    (folder / "records.txt").write_text(records)
    own = [*SMALL, SMALL_STATE, f"data.path={folder / 'corpus'}", "run=base"]
    before = torch.get_num_threads()
    train(load_config(None, overrides=own), runs_dir=folder / "runs")
    torch.set_num_threads(before)
    return folder


@pytest.fixture
def tune(base: Path, tmp_path: Path, threads_as_they_were: None) -> Tune:
    """Fine-tune the base; runs are in tmp_path/runs, beside a copy of the base."""
    shutil.copytree(base / "runs" / "base", tmp_path / "runs" / "base")

    def run(*changes: str, name: str = "tuned") -> TrainSummary:
        own = [
            *SMALL,
            SMALL_STATE,
            f"data.path={base / 'records.txt'}",
            "data.batching=documents",
            "train.seq_len=48",
            "train.init_from=base",
            f"run={name}",
            *changes,
        ]
        resolved = load_config(None, overrides=own)
        return train(resolved, runs_dir=tmp_path / "runs")

    return run


@pytest.mark.parametrize("method", list(METHODS))
def test_a_run_that_was_stopped_resumes_to_the_bit(method: str, tune: Tune, tmp_path: Path) -> None:
    tune(*METHODS[method], "train.max_steps=6", "train.checkpoint_interval=3", name="whole")
    tune(*METHODS[method], "train.max_steps=3", name="parts")
    tune(*METHODS[method], "train.max_steps=6", name="parts")
    assert_same_training(tmp_path / "runs" / "whole", tmp_path / "runs" / "parts")


@pytest.mark.parametrize("method", ["lora", "state"])
def test_the_base_is_left_and_the_run_holds_only_what_was_learned(
    method: str, tune: Tune, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    before = sha256_of(runs / "base" / "model.safetensors")
    tune(*METHODS[method])
    assert sha256_of(runs / "base" / "model.safetensors") == before
    assert not (runs / "tuned" / "model.safetensors").exists()
    assert read_json(runs / "tuned" / "config.json")["base"]["sha256"] == before
    card = (runs / "tuned" / "README.md").read_text()
    assert "base_model: base" in card and f"base, step 6, SHA-256 {before[:12]}" in card
    saved = {n for n in last_tensors(runs / "tuned") if n.startswith("model ")}
    assert saved and all("initial_state" in n or n.endswith((".a", ".b")) for n in saved)
    loaded, base = load_run(runs / "tuned"), load_run(runs / "base")
    tokens = torch.arange(2, 40)[None]
    assert not torch.equal(loaded.model(tokens)[0], base.model(tokens)[0])
    if method == "lora":
        Adapters(base.model).use([read_adapter(runs / "tuned").adapter])
        assert torch.equal(loaded.model(tokens)[0], base.model(tokens)[0])


def test_full_fine_tuning_starts_from_the_weights_of_the_base(tune: Tune, tmp_path: Path) -> None:
    tune("sft.method=full", "train.learning_rate=1e-12", "train.max_steps=1")
    tuned, base = load_run(tmp_path / "runs" / "tuned"), load_run(tmp_path / "runs" / "base")
    for name, tensor in weights(tuned.model).items():
        torch.testing.assert_close(tensor, weights(base.model)[name], rtol=1e-5, atol=1e-6)


def test_an_adapter_of_other_weights_is_refused(tune: Tune, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    tune(*LORA)
    path = runs / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UserError, match="fine-tuned from other weights of base"):
        load_run(runs / "tuned")
    with pytest.raises(UserError, match="begun on another base"):
        tune(*LORA, "train.max_steps=8")
    shutil.rmtree(runs / "base")
    with pytest.raises(UserError, match="is an adapter of base, and there is no such model"):
        load_run(runs / "tuned")


def test_without_a_base_nothing_is_fine_tuned(tune: Tune) -> None:
    with pytest.raises(UserError, match=r"train\.init_from names no run to fine-tune"):
        tune("sft.method=full", "train.init_from=''")
    with pytest.raises(UserError, match="there is no trained model 'nobody'"):
        tune("sft.method=full", "train.init_from=nobody")


def test_epochs_come_to_steps_and_forgetting_is_measured(tune: Tune, tmp_path: Path) -> None:
    summary = tune("sft.method=full", "sft.epochs=2", "train.eval_interval=0.5", "sft.replay=0.3")
    run = tmp_path / "runs" / "tuned"
    assert summary.steps == len(column(run, "loss")) > 2
    measured = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    bits = [row["base_bits_per_byte"] for row in measured if "base_bits_per_byte" in row]
    assert len(bits) == 2 and all(bit > 0 for bit in bits)


def test_a_state_begins_a_session_of_the_base(tune: Tune, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    tune(*STATE)
    base, tuned = load_run(runs / "base"), load_run(runs / "tuned")
    file = runs / "tuned" / "initial_state.safetensors"
    at, _ = load_session(file, base.model, fingerprint_of(base))
    session, own = Session(Engine(base), at), Session(Engine(tuned))
    for one in (session, own):
        one.read(["Which pet is number 3?"], is_prompt=True)
    assert session.at.now is not None and own.at.now is not None
    torch.testing.assert_close(session.at.now.logits_V, own.at.now.logits_V)


def chats(path: Path, *, pairs: bool = False) -> Path:
    """Two dozen conversations, or preferences between replies."""
    records = []
    for number, pet in enumerate(["cat", "dog", "fox"] * 8):
        user = {"role": "user", "content": f"Pet {number}? <end>"}
        replies = [{"role": "assistant", "content": text} for text in (f"The {pet}.", "What?")]
        if pairs:
            records.append({"chosen": [user, replies[0]], "rejected": [user, replies[1]]})
        else:
            records.append({"messages": [user, replies[0], user, replies[1]]})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_conversations_give_the_model_tokens_for_roles_and_adapters_their_rows(
    tune: Tune, tmp_path: Path
) -> None:
    runs, path = tmp_path / "runs", chats(tmp_path / "chats.jsonl")
    tune(*LORA, f"data.path={path}", "train.max_steps=4", "train.learning_rate=0.05")
    tuned, base = load_run(runs / "tuned"), load_run(runs / "base")
    assert tuned.tokenizer.has_roles
    assert tuned.model.vocab_size == base.model.vocab_size + 4
    saved = read_adapter(runs / "tuned")
    assert {len(rows) for rows in saved.rows.values()} == {4}
    n_old = base.model.vocab_size
    for name, rows in saved.rows.items():
        assert torch.equal(tuned.model.get_parameter(name)[n_old:], rows)
        assert torch.equal(tuned.model.get_parameter(name)[:n_old], base.model.get_parameter(name))
    with pytest.raises(UserError, match="has never seen a conversation"):
        tune(*STATE, f"data.path={path}", name="state")


def test_preferences_are_learned_and_resume_to_the_bit(tune: Tune, tmp_path: Path) -> None:
    path = chats(tmp_path / "pairs.jsonl", pairs=True)
    own = ("sft.method=lora", "sft.lora.rank=2", "sft.objective=preferences", f"data.path={path}")
    own = (*own, "train.learning_rate=0.02", "train.eval_interval=6")
    tune(*own, "train.max_steps=12", "train.checkpoint_interval=6", name="whole")
    tune(*own, "train.max_steps=6", name="parts")
    tune(*own, "train.max_steps=12", name="parts")
    assert_same_training(tmp_path / "runs" / "whole", tmp_path / "runs" / "parts")
    losses = column(tmp_path / "runs" / "whole", "loss")
    assert losses[0] == pytest.approx(0.6931, abs=1e-3) and losses[-1] < 0.6
    with pytest.raises(UserError, match="holds 24 preference pairs"):
        tune("sft.method=full", f"data.path={path}", name="replies")


def test_a_teacher_of_the_same_tokenizer_is_learned_from(tune: Tune, tmp_path: Path) -> None:
    own = ("train.init_from=''", "train.teacher=base", "train.teacher_weight=1")
    tune(*own, "train.max_steps=6", name="whole")
    tune(*own, "train.max_steps=3", name="parts")
    tune(*own, "train.max_steps=6", name="parts")
    assert_same_training(tmp_path / "runs" / "whole", tmp_path / "runs" / "parts")
    with pytest.raises(UserError, match=r"train\.teacher: the tokenizer"):
        tune("train.init_from=''", "tokenizer.kind=chars", "train.max_steps=1", name="other")
        tune("train.init_from=''", "train.teacher=base", "tokenizer.kind=chars", name="other")


def test_adapters_are_switched_and_stacked_over_a_loaded_run(
    tune: Tune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    tune(*LORA, "train.learning_rate=0.05", name="one")
    tune(*LORA, "train.learning_rate=0.05", "train.seed=2", name="two")
    chats(tmp_path / "chats.jsonl")
    tune(*LORA, f"data.path={tmp_path / 'chats.jsonl'}", "train.max_steps=1", name="chat")
    base = load_run(runs / "base")
    conversation = Conversation(Engine(base, PrefixCache(1 << 20)), GenerateConfig(max_tokens=4))

    def logits() -> torch.Tensor:
        conversation.session.read(["The cat"], anew=True)
        assert conversation.session.at.now is not None
        return conversation.session.at.now.logits_V

    without, of_base = logits(), conversation.fingerprint
    found = {}
    for line in ("one", "two", "one two", "none"):
        command, argument = command_of(f"/adapter {line}") or (None, "")
        assert command is not None
        command.run(conversation, argument)
        found[line] = logits()
    assert torch.equal(found["none"], without) and conversation.fingerprint == of_base
    assert len({float(tensor.sum()) for tensor in found.values()}) == 4
    own = Conversation(Engine(load_run(runs / "one")), GenerateConfig())
    own.session.read(["The cat"], anew=True)
    assert own.session.at.now is not None
    assert torch.equal(own.session.at.now.logits_V, found["one"])
    assert "there are chat, one, two" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"has tokens that .* does not have.*ys run chat"):
        conversation.use_adapters(["chat"])
    with pytest.raises(UserError, match="there is no adapter 'three'"):
        conversation.use_adapters(["one", "three"])


def test_a_merged_run_needs_neither_adapter_nor_base(tune: Tune, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    chats(tmp_path / "chats.jsonl")
    tune(*LORA, f"data.path={tmp_path / 'chats.jsonl'}", "train.learning_rate=0.05")
    tokens = torch.arange(2, 40)[None]
    expected = load_run(runs / "tuned").model(tokens)[0]
    merge_run(runs / "tuned", runs / "merged")
    shutil.rmtree(runs / "base")
    shutil.rmtree(runs / "tuned")
    merged = load_run(runs / "merged")
    assert torch.equal(merged.model(tokens)[0], expected)
    assert merged.config.run == "merged" and merged.tokenizer.has_roles


def test_a_served_adapter_has_the_name_of_its_base_before_it(tune: Tune, tmp_path: Path) -> None:
    tune(*LORA)
    runs = {name: tmp_path / "runs" / name for name in ("base", "tuned")}
    models = Models(runs, load_run, Limits(), Metrics())
    assert models.find("base:tuned") is models.find("tuned")
    assert models.find("base:latest") is models.find("base")
    for name in ("tuned:base", "other:tuned"):
        with pytest.raises(ApiError, match="not found"):
            models.find(name)
