"""Exports in the hands of the programs that they are for: transformers and onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.exports import TEXTS, shaken, small

from ys_llm.config.shipped import shipped_folder
from ys_llm.config.sources import load_config
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.inference.generate import generate, prefill
from ys_llm.model.state import flatten
from ys_llm.runs.export import export_run
from ys_llm.runs.model_files import LoadedRun

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of the programs about themselves
]
REFUSED = ("yoco",)  # no export has a global cache
SAME = (
    "lillm_300m",
    "lillm_300m_sft",
    "shakespeare_3min",
    "bytes",
)  # as small as here, these are like others
NAMES = sorted({path.stem for path in shipped_folder().glob("*.yaml")} - {*SAME, *REFUSED})
PROMPTS = ("Once upon a time", "A fox?", "“Hello,” said the city")
N_NEW = 12
# With random weights 2Mamba divides by sums of squares that are almost 0, and the quadratic state
# is chaotic: what float32 rounds is far from float64 in ys, too.
TOLERANCE = dict.fromkeys(NAMES, 1e-4) | {"decay_attention": 0.02, "ys_v0_1": 0.01}


def run_of(name: str, folder: Path) -> LoadedRun:
    """A new, small model of a shipped configuration."""
    config = small(load_config(shipped_folder() / f"{name}.yaml").config)
    tokenizer = train_tokenizer([*TEXTS, *TEXTS], kind="bpe_joiner", vocab_size=300)
    config = replace(config, generate=replace(config.generate, temperature=0.0, max_tokens=N_NEW))
    return LoadedRun(folder, config, shaken(config, tokenizer.vocab_size), tokenizer, 1, True)


def loaded(folder: Path) -> tuple[Any, Any]:
    """The model and the tokenizer, as a stranger loads them."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    return model, tokenizer


def answers(run: LoadedRun, prompt: str) -> list[int]:
    """What ys itself generates, without the end of the text."""
    prefilled = prefill(run.model, [0, *run.tokenizer.encode(prompt)])
    tokens = generate(run.model, prefilled, sampling=run.config.generate, end_ids=[0])
    return [token.id for token in tokens if token.id]


@pytest.fixture(scope="module", params=NAMES)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoadedRun, Any, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    run = run_of(request.param, folder)
    export_run(run, "hf", folder / "hf")
    return run, *loaded(folder / "hf")


def test_transformers_gives_the_logits_and_continues_from_a_cache(
    exported: tuple[LoadedRun, Any, Any],
) -> None:
    run, model, _ = exported
    tokens, tolerance = torch.randint(run.model.vocab_size, (2, 30)), TOLERANCE[run.config.run]
    with torch.no_grad():
        expected, _ = run.model(tokens)
        whole = model(tokens)
        first = model(tokens[:, :20])
        rest = model(tokens[:, 20:], cache=first.cache)
        again = model(tokens[:, 20:], past_key_values=first.past_key_values)
    how = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(whole.logits, expected, **how)
    torch.testing.assert_close(rest.logits, expected[:, 20:], **how)
    assert torch.equal(rest.logits, again.logits)
    assert rest.cache.get_seq_length() == 30


def test_transformers_generates_what_ys_generates_and_reads_each_token_once(
    exported: tuple[LoadedRun, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model, tokenizer = exported
    read, forward = list[int](), model.network.forward

    def counting(tokens: torch.Tensor, *others: Any) -> Any:
        read.append(tokens.shape[1])
        return forward(tokens, *others)

    monkeypatch.setattr(model.network, "forward", counting)
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        read.clear()
        found = model.generate(**inputs, max_new_tokens=N_NEW)[0, inputs["input_ids"].shape[1] :]
        assert [int(i) for i in found if i] == answers(run, prompt)
        assert read[1:] == [1] * (len(found) - 1)


def test_a_padded_batch_generates_what_each_text_gets_alone(
    exported: tuple[LoadedRun, Any, Any],
) -> None:
    run, model, tokenizer = exported
    inputs = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    found = model.generate(**inputs, max_new_tokens=N_NEW)[:, inputs["input_ids"].shape[1] :]
    for row, prompt in zip(found, PROMPTS, strict=True):
        assert [int(i) for i in row if i] == answers(run, prompt)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedRun, Any, Any]:
    folder = tmp_path_factory.mktemp("quickstart")
    run = run_of("quickstart", folder)
    export_run(run, "hf", folder / "hf")
    return run, *loaded(folder / "hf")


def test_the_tokenizer_loads_as_a_fast_one(quickstart: tuple[LoadedRun, Any, Any]) -> None:
    run, _, tokenizer = quickstart
    assert tokenizer.is_fast
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.bos_token_id) == ("<end>", 0, 0)
    for text in TEXTS:
        ids = run.tokenizer.encode(text)
        assert tokenizer(text)["input_ids"] == [0, *ids]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer.decode([0, *ids], skip_special_tokens=True) == text
    assert tokenizer("a<start>b<end>", add_special_tokens=False)["input_ids"][-1] == 0


def test_a_tokenizer_of_words_loads_with_its_markers(tmp_path: Path) -> None:
    run = run_of("quickstart", tmp_path)
    words = train_tokenizer([*TEXTS, *TEXTS], kind="words", vocab_size=300)
    model = shaken(run.config, words.vocab_size)
    export_run(replace(run, tokenizer=words, model=model), "hf", tmp_path / "hf")
    _, tokenizer = loaded(tmp_path / "hf")
    texts = [*TEXTS, "NASA and McDonald in the USA"]
    for text in texts:
        ids = words.encode(text)
        assert tokenizer(text)["input_ids"] == [0, *ids]
        assert tokenizer.decode([0, *ids], skip_special_tokens=True) == text
    assert tokenizer(texts)["input_ids"] == [[0, *words.encode(text)] for text in texts]


def test_a_chat_is_a_prompt_as_training_had_it(quickstart: tuple[LoadedRun, Any, Any]) -> None:
    run, _, tokenizer = quickstart
    found = tokenizer.apply_chat_template(
        [{"role": "user", "content": "A fox?"}], return_dict=False
    )
    assert found == [0, *run.tokenizer.encode("A fox?"), 1]


def test_beams_carry_their_own_states(quickstart: tuple[LoadedRun, Any, Any]) -> None:
    """With the whole text read again at every step the beams are the same."""
    _, model, tokenizer = quickstart
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    how = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False}
    with_state = model.generate(**inputs, **how)
    assert torch.equal(with_state, model.generate(**inputs, **how, use_cache=False))


def test_a_loss_is_that_of_the_model(quickstart: tuple[LoadedRun, Any, Any]) -> None:
    run, model, _ = quickstart
    tokens = torch.randint(run.model.vocab_size, (2, 9))
    with torch.no_grad():
        expected, _ = run.model(tokens[:, :-1], targets_BT=tokens[:, 1:])
        found = model(tokens, labels=tokens).loss
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_export_may_be_saved_and_loaded_again(
    quickstart: tuple[LoadedRun, Any, Any], tmp_path: Path
) -> None:
    _, model, tokenizer = quickstart
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again, _ = loaded(tmp_path / "again")
    tokens = torch.arange(12)[None]
    assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_gives_the_logits_and_states_step_by_step(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    run = run_of(name, tmp_path)
    export_run(run, "onnx", tmp_path / "onnx")
    prefill_graph, step = (
        runtime.InferenceSession(str(tmp_path / "onnx" / f"{graph}.onnx"))
        for graph in ("prefill", "step")
    )
    assert len({path.stat().st_mode for path in (tmp_path / "onnx").iterdir()}) == 1
    tokens = torch.randint(run.model.vocab_size, (3, 25))
    with torch.no_grad():
        expected, _ = run.model(tokens)
        _, after = run.model(tokens[:, :24])
    allowed = TOLERANCE[name]
    logits, states = ran(prefill_graph, zeros(prefill_graph, 3), tokens=tokens[:, :20].numpy())
    close(logits, expected[:, :20], allowed)
    for t in range(20, 24):
        logits, states = ran(step, states, token=tokens[:, t].numpy())
        close(logits, expected[:, t], allowed)
    for own, tensor in flatten({key: after[key] for key in after if key != "position_B"}).items():
        kept = states[f"state.{own}"]
        close(
            kept[:, kept.shape[1] - tensor.shape[1] :] if kept.ndim > 1 else kept,
            tensor,
            allowed,
        )
    logits, _ = ran(prefill_graph, states, tokens=tokens[:, 24:].numpy())
    close(logits, expected[:, 24:], allowed)


def close(found: Any, expected: torch.Tensor, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected.numpy(), rtol=tolerance, atol=tolerance)


def zeros(session: Any, batch_size: int) -> dict[str, Any]:
    """The state before the first token: what grows begins with length 0."""
    types = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}
    return {
        one.name: np.zeros(
            [batch_size, *(n if isinstance(n, int) else 0 for n in one.shape[1:])], types[one.type]
        )
        for one in session.get_inputs()
        if one.name.startswith("state.")
    }


def ran(session: Any, states: dict[str, Any], **tokens: Any) -> tuple[Any, dict[str, Any]]:
    """The logits, and the states as the next call takes them."""
    names = [one.name for one in session.get_outputs()]
    found = dict(zip(names, session.run(names, {**states, **tokens}), strict=True))
    logits = found.pop("logits")
    return logits, {name.replace("next.", "state.", 1): x for name, x in found.items()}
