"""A run that fine-tunes a base, built from its examples; and how well it does on held-out ones."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ys_llm.config.schema import Config
from ys_llm.data.examples import Pairs
from ys_llm.errors import EXIT_USAGE, UserError, command_line
from ys_llm.evaluation.bits_per_byte import (
    Evaluation,
    evaluate_apart,
    evaluating,
)
from ys_llm.inference.generate import Prefilled
from ys_llm.inference.prefix_file import ANY_SOFTWARE, fingerprint_of
from ys_llm.inference.session import Snapshot
from ys_llm.inference.session_file import save_snapshot
from ys_llm.model.language_model import Model
from ys_llm.model.state import map_state
from ys_llm.runs.adapters import base_of
from ys_llm.runs.folder import INITIAL_STATE
from ys_llm.runs.model_files import load_run, read_tensors, tensor_bytes
from ys_llm.system.files import write_atomically
from ys_llm.training.compute import Compute, select_device
from ys_llm.training.memory import release_freed_memory
from ys_llm.training.metrics import log_line
from ys_llm.training.objectives import both_batches, pair_loss, reference_of
from ys_llm.training.optimizer import make_optimizer
from ys_llm.training.ranks.evaluate import evaluate_together
from ys_llm.training.trainer import Run, TrainingData, TrainState, Tuning, batches_of_epoch
from ys_llm.training.tuning import (
    Source,
    base_run,
    base_text,
    bits_per_byte_of_base,
    encode,
    encode_pairs,
    learned_line,
    tuned_model,
    tuned_tokenizer,
    with_epochs,
)

_ROWS = 32  # of an evaluation
_BASE = "base"  # key of a checkpoint's environment


def build_tuned(
    config: Config, folder: Path, source: Source, *, cache: Path
) -> tuple[Run, TrainState]:
    """A run with the base's model, its optimizer, and the examples; writes to `cache` alone."""
    path = base_run(config, folder)
    tokenizer = tuned_tokenizer(path, source, config)
    device, base = select_device(config.train), load_run(path)
    split, pairs, held_out_pairs = source.split, None, None
    if config.sft.objective == "preferences":
        pairs = encode_pairs(source, split.training, tokenizer)
        held_out_pairs = encode_pairs(source, split.validation, tokenizer)
        training = pairs.chosen if pairs else None
        validation = held_out_pairs.chosen if held_out_pairs else None
    else:
        training = encode(config, source, split.training, tokenizer)
        validation = encode(config, source, split.validation, tokenizer)
    if training is None:
        raise UserError(f"{config.data.path} has nothing to learn from", "Give it replies.")
    torch.manual_seed(config.train.seed)
    model = tuned_model(config, tokenizer, base).to(device)
    prompt = next((d.prompt or "" for d in split.validation or split.training), "")
    has_prompts = any(document.has_prompt for document in split.training)
    data = TrainingData(training, validation, has_prompts, config.train.sample_prompt or prompt, {})
    replay, held_out = base_text(config, base, tokenizer, cache)
    tuning = Tuning(
        base_of(path, config.train.init_from, base.step),
        replay,
        held_out if config.sft.method != "state" else None,
        bits_per_byte_of_base(config, base.model, held_out),
        pairs,
        held_out_pairs,
        fingerprint=fingerprint_of(base) if config.sft.method == "state" else None,
        new_tokens=tokenizer.vocab_size - base.tokenizer.vocab_size,
    )
    release_freed_memory()
    log_line(f"base         {path}, step {base.step:,}, SHA-256 {tuning.base.sha256[:12]}")
    log_line(learned_line(config, model))
    if pairs is not None:
        tuning = with_reference(tuning, model, config, cache)
    optimizer = make_optimizer(model, config.train)
    run = Run(config, folder, tokenizer, data, model, optimizer, Compute(device), tuning=tuning)
    return replace(run, config=with_epochs(config, batches_of_epoch(run))), TrainState()


def with_reference(tuning: Tuning, model: Model, config: Config, cache: Path) -> Tuning:
    """The base's log-probabilities of all pairs, computed once and kept.

    `model` is the base still: nothing was learned yet.
    """
    seq_len, found = config.train.plan[0].seq_len, []
    for pairs in (tuning.pairs, tuning.held_out_pairs):
        found.append({} if pairs is None else _kept_reference(tuning, pairs, model, seq_len, cache))
    return replace(tuning, reference=found[0], held_out_reference=found[1])


def _kept_reference(
    tuning: Tuning, pairs: Pairs, model: Model, seq_len: int, cache: Path
) -> dict[str, Tensor]:
    key = " ".join((tuning.base.sha256, str(seq_len), *pairs.ids))
    name = f"reference-{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.safetensors"
    if not (cache / name).exists():
        log_line(f"reference    reading {2 * len(pairs.ids):,} replies with the base, once")
        cache.mkdir(parents=True, exist_ok=True)
        content = tensor_bytes(reference_of(model, pairs, seq_len))
        write_atomically(cache / name, content, create_folder=False)
    return read_tensors(cache / name)


def evaluate_held_out(run: Run, *, max_tokens: int = 0) -> tuple[Evaluation, dict[str, float]]:
    """The result on the held-out side, and what else a row of metrics says of it.

    That of preferences is their loss, in nats and in bits a pair. Forgetting is the base's own
    held-out text, beside what it was.
    """
    config, tuning, data = run.config, run.tuning, run.data.validation
    assert data is not None
    seq_len, further = config.train.plan[-1].seq_len, dict[str, float]()
    if tuning is not None and tuning.held_out_pairs is not None:
        result, further = _of_pairs(run, tuning.held_out_pairs, tuning)
    elif run.model.initial_state is not None:
        found = asdict(evaluate_apart(run.model, data, seq_len)) if run.ranks.is_first else {}
        result = Evaluation(**run.ranks.tell(found))
    else:
        result = evaluate_together(run, data, max_tokens=max_tokens)
    if tuning is not None and tuning.held_out is not None:  # which the first process alone has
        bits = bits_per_byte_of_base(config, run.model, tuning.held_out)
        further["base_bits_per_byte"] = bits
    return result, further


def _of_pairs(run: Run, pairs: Pairs, tuning: Tuning) -> tuple[Evaluation, dict[str, float]]:
    losses, preferred, seq_len = 0.0, 0.0, run.config.train.plan[-1].seq_len
    numbers = np.arange(len(pairs.ids))
    with evaluating(run.model):
        for begin in range(0, len(numbers), _ROWS):
            documents = numbers[begin : begin + _ROWS]
            chosen, rejected = both_batches(pairs, documents, seq_len)
            batches = (chosen.to(run.device), rejected.to(run.device))
            kept = {name: values[documents] for name, values in tuning.held_out_reference.items()}
            found = pair_loss(run.model, batches, kept, run.config.sft.beta)
            losses += float(found.loss) * len(documents)
            preferred += found.accuracy * len(documents)
    loss, n = losses / len(numbers), len(numbers)
    return Evaluation(loss, loss / math.log(2), n, n), {"val_preferred": preferred / n}


def base_environment(run: Run) -> dict[str, str]:
    """What a checkpoint says of the base."""
    if run.tuning is None:
        return {}
    return {_BASE: f"{run.tuning.base.run}, SHA-256 {run.tuning.base.sha256}"}


def check_tuning_is_shareable(config: Config, n_processes: int) -> None:
    """UserError (2) for fine-tuning that several processes cannot share."""
    if config.sft.method == "none" or n_processes == 1:
        return
    problems = {
        "sft.objective: preferences": config.sft.objective == "preferences",
        "train.shard": config.train.shard,
    }
    if found := [what for what, is_set in problems.items() if is_set]:
        raise UserError(
            f"{config.run} is fine-tuned with {' and '.join(found)}, which {n_processes} "
            "processes cannot share",
            f"In one process: {command_line('train', run=config.run)}",
            exit_code=EXIT_USAGE,
        )


def check_same_base(before: Mapping[str, Any], run: Run) -> None:
    """UserError where a checkpoint holds only what was learned beside another base."""
    now = base_environment(run).get(_BASE)
    holds_all = run.config.sft.method == "full" and run.config.sft.objective == "replies"
    if before.get(_BASE, now) != now and not holds_all:
        raise UserError(
            f"{run.folder} was begun on another base: {before[_BASE]}; now it is {now}",
            "Put the weights of that base back, or choose another --run",
        )


def further_text(run: Run, further: Mapping[str, float]) -> str:
    """What else an evaluation has found, for its line."""
    found = []
    if "val_preferred" in further:
        found.append(f"{further['val_preferred']:.1%} of pairs preferred")
    if run.tuning is not None and (bits := further.get("base_bits_per_byte")) is not None:
        before = run.tuning.base_bits_per_byte
        found.append(f"base text {bits:.4f} ({before:.4f} before, {bits / before - 1:+.1%})")
    return "".join(f", {text}" for text in found)


def base_facts(run: Run) -> dict[str, Any]:
    """What config.json says of the base; nothing where there is none."""
    return {} if run.tuning is None else {"base": asdict(run.tuning.base)}


def save_initial_state(run: Run) -> None:
    """Write a learned initial state as a session that `ys run BASE --state` begins from."""
    if run.model.initial_state is None:
        return
    assert run.tuning is not None and run.tuning.fingerprint is not None
    state = map_state(run.model.init_state(1), lambda tensor: tensor.detach().cpu())
    now = Prefilled(torch.zeros(run.model.vocab_size), state, (), 0)
    fingerprint = replace(run.tuning.fingerprint, software=ANY_SOFTWARE)
    save_snapshot(Snapshot(now), frozenset(), run.folder / INITIAL_STATE, fingerprint)
