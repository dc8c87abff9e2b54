"""Generation with a model of ten million random weights: per token, by context, and prefill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import rate
from benchmarks.rounds import Effort, Group, interleaved
from ys_llm.config.schema import Config, GenerateConfig, ModelConfig
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.inference.decoder import decoder_of
from ys_llm.inference.generate import Prefilled, generate, generate_batch, prefill
from ys_llm.model.costs import parameter_count
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import save_model

VOCAB_SIZE = 4096
TEN_MILLION = ModelConfig(
    d_model=320, n_layers=6, d_mlp=864, options={"three_tier": {"d_state": 320}}
)
_SMALL = ModelConfig(d_model=32, n_layers=2, d_mlp=64, options={"three_tier": {"d_state": 32}})
FLOPS_PER_TOKEN = 20e6  # of reading with this model, about
TEXTS = 64
_NEVER = ()  # nothing ends an answer: each has its full length


def measure(effort: Effort, limits: Group) -> list[Group]:
    """Seconds of generated tokens, or of one prefill, for each case."""
    model = random_model(quick=effort.quick)
    near, far, prefix, answer = (10, 200, 32, 8) if effort.quick else (100, 100_000, 512, 64)
    while far > 1000 and far * FLOPS_PER_TOKEN / rate(limits, "matmul fp32") > effort.seconds / 4:
        far //= 10
    ids = torch.randint(2, model.vocab_size, (far,)).tolist()
    after_near = prefill(model, ids[:near])
    named = {
        "near": (f"{answer} tokens after {near:,}", continuation(model, after_near, answer)),
        "far": (f"{answer} tokens after {far:,}", continuation(model, prefill(model, ids), answer)),
        "read": (f"read {prefix} tokens", lambda: prefill(model, ids[:prefix])),
        "write": (f"write {prefix} tokens", continuation(model, prefill(model, ids[:1]), prefix)),
        "texts": (f"{TEXTS} texts at once", continuations(model, after_near, answer)),
    }
    reading = "read as many bytes"
    vector = torch.ones(_bytes_per_token(model) // 4)  # a large cache may hold them
    cases: dict[str, Callable[[], object]] = {**dict(named.values()), reading: lambda: vector.sum()}
    seconds, _ = interleaved(cases, effort, keep=cases)
    names = [name for name, _ in named.values()]
    facts: dict[str, Any] = {
        "parameters": parameter_count(model),
        "cases": dict(zip(named, names, strict=True)),
        "tokens": dict(zip(names, (answer, answer, prefix, prefix, TEXTS * answer), strict=True)),
        "bytes_per_token": _bytes_per_token(model),
        "work": {reading: _bytes_per_token(model)},
    }
    return [Group("generation", seconds, facts)]


def _bytes_per_token(model: Model) -> int:
    """One row of the embedding is read per token, and all of every other weight."""
    one_row = model.embedding.weight[0].numel()
    return 4 * (parameter_count(model) - model.embedding.weight.numel() + one_row)


def random_model(*, quick: bool) -> Model:
    """In evaluation mode, with the summaries' output shapers moved away from 0."""
    torch.manual_seed(0)
    model = Model(_SMALL if quick else TEN_MILLION, vocab_size=300 if quick else VOCAB_SIZE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("output_shaper"):
                parameter.normal_(std=0.02)
    return model.eval()


def save_run(run: Path, tokenizer: Tokenizer) -> None:
    """A run folder for `ys run`, like that of a training run, with random weights."""
    torch.manual_seed(0)
    model = Model(TEN_MILLION, vocab_size=tokenizer.vocab_size)
    run.mkdir(parents=True, exist_ok=True)
    tokenizer.save(run / "tokenizer.json")
    facts = {
        **{"step": 0, "tokens": 0, "parameters": parameter_count(model), "sources": []},
        **{"val_bits_per_byte": None, "has_records": False},
    }
    run.mkdir(parents=True, exist_ok=True)
    save_model(run, Config(run=run.name, model=TEN_MILLION), model, tokenizer, facts)


def continuation(model: Model, prefilled: Prefilled, n_tokens: int) -> Callable[[], object]:
    """One answer of so many tokens."""
    sampling, decoder = GenerateConfig(max_tokens=n_tokens, seed=1), decoder_of(model)

    def run() -> None:
        tokens = generate(model, prefilled, sampling=sampling, end_ids=_NEVER, decoder=decoder)
        made = sum(1 for _ in tokens)
        assert made == n_tokens, made

    return run


def continuations(
    model: Model, prefilled: Prefilled, n_tokens: int, n_texts: int = TEXTS
) -> Callable[[], object]:
    """So many answers to one prompt, decoded together."""
    sampling, decoder = GenerateConfig(max_tokens=n_tokens, seed=1), decoder_of(model)

    def run() -> None:
        answers = generate_batch(
            model,
            [prefilled] * n_texts,
            sampling=sampling,
            end_ids=_NEVER,
            max_batch=n_texts,
            decoder=decoder,
        )
        made = sum(len(tokens) for _, tokens in answers)
        assert made == n_texts * n_tokens, made

    return run
