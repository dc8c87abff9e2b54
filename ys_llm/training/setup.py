"""Before the first step: corpus, tokenizer, shards, model and optimizer, as new or as they were."""

import ctypes
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ys_llm.config.schema import Config, TrainConfig
from ys_llm.config.sources import load_config, to_yaml
from ys_llm.csrc import loader
from ys_llm.data.batches import batches_per_epoch
from ys_llm.data.provenance import Seen, seen
from ys_llm.data.shards import prepare
from ys_llm.data.split import Split, load_split
from ys_llm.data.tokenizer import Tokenizer, train_tokenizer
from ys_llm.errors import UserError
from ys_llm.evaluation.bits_per_byte import cached_baselines
from ys_llm.model.costs import (
    flops_per_token,
    parameter_count,
    parameters_by_part,
    product_rate,
    state_bytes,
)
from ys_llm.model.language_model import Model
from ys_llm.runs.checkpoint import checkpoints, load_weights, read_json, read_tensors
from ys_llm.runs.folder import find_run, remove_temp_files
from ys_llm.system.files import write_atomically
from ys_llm.training.memory import check_fits, largest_batch_size
from ys_llm.training.metrics import log_line
from ys_llm.training.optimizer import make_optimizer
from ys_llm.training.resume import (
    changed_circumstances,
    check_config,
    circumstances,
    go_back,
    latest_valid_checkpoint,
    machine_of,
    rollbacks,
)
from ys_llm.training.trainer import Training, batch_plan, restore_checkpoint, save, stage_at

BF16_GAIN = 1.5  # bf16 products must be this much faster than fp32 ones to be worth their rounding
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # malloc.h


def set_up(config: Config, run: Path, *, from_step: int | None = None) -> Training:
    """Everything the loop needs, going on from the run's last checkpoint where there is one."""
    with torch.device("meta"):  # a model that cannot be built is told of before the text is read
        Model(config.model, vocab_size=1, backend=config.train.backend)
    config = with_batch_size_of(run, config)
    changed = check_config(run, config)
    if from_step is not None:
        go_back(run, from_step)
    remove_temp_files(run)
    keep_freed_memory()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    split = load_split(config.data)
    training = build(config, run, split, cache=run / "cache")
    training.sources = _sources(config, split)
    # Not before: the vocabulary of a text too short to train on must not outlive the complaint.
    training.tokenizer.save(run / "tokenizer.json")
    write_atomically(run / "config.yaml", to_yaml(training.config))
    _header(training)
    _settle(training, split, changed)
    return training


def with_batch_size_of(run: Path, config: Config) -> Config:
    """`batch_size: auto` is settled once a run: memory may be scarcer when it goes on."""
    if config.train.batch_size != "auto" or not checkpoints(run):
        return config
    before = load_config(run / "config.yaml").config.train.batch_size
    return replace(config, train=replace(config.train, batch_size=before))


def _sources(config: Config, split: Split) -> list[dict[str, Any]]:
    """What wrote the training documents, for the model card; nothing where no manifest tells."""
    try:
        found = seen(Path(config.data.path), (document.id for document in split.training))
    except (UserError, OSError) as error:  # it may be another program's: texts can be read without
        log_line(f"written by   unknown: {error}")
        return []
    if not found.counts:
        return []
    log_line(f"written by   {_writers(found)}")
    sources = [
        {
            "kind": source.kind,
            "recipe": source.digest,
            "model": source.model,
            "model_digest": source.model_digest,
            "records": records,
        }
        for source, records in sorted(
            found.counts.items(), key=lambda pair: (pair[0].kind, -pair[1])
        )
    ]
    unknown = {"kind": "", "recipe": "", "model": "", "model_digest": "", "records": found.unknown}
    return [*sources, *([unknown] if found.unknown else [])]


def _writers(found: Seen) -> str:
    """Records and kinds of each writer, the busiest first."""
    records: Counter[str] = Counter()
    kinds: dict[str, set[str]] = {}
    for source, count in found.counts.items():
        writer = source.model or "programs"
        records[writer] += count
        kinds.setdefault(writer, set()).add(source.kind)
    parts = [
        f"{writer} {count:,} records of {len(kinds[writer]):,} "
        f"kind{'s' if len(kinds[writer]) > 1 else ''}"
        for writer, count in records.most_common()
    ]
    return ", ".join([*parts, *([f"unknown {found.unknown:,}"] if found.unknown else [])])


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks instead of giving each back to the kernel.

    Every step frees and takes the same large tensors; without this each of their pages is faulted
    in anew, 22,000 faults a step in a small model, a sixth of its time. Elsewhere: nothing is done.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def build(config: Config, run: Path, split: Split, *, cache: Path) -> Training:
    """Tokenizer and shards, as the run has them or as new; model and optimizer as new.

    Nothing is written but the shards and the baselines, into `cache`.
    """
    log_line(
        f"corpus       {config.data.path}: {len(split.training):,} training documents, "
        f"{len(split.validation):,} held out"
    )
    log_line(f"leak check   {split.leak_check}")
    for label, note in split.notes.items():
        log_line(f"{label:<12} {note}")
    device = device_of(config.train)
    tokenizer = _tokenizer(config, run, split)
    config = _with_batch_size(config, tokenizer, device)
    check_fits(config, vocab_size=tokenizer.vocab_size, device=device)
    data = prepare(split.training, tokenizer, cache_dir=cache, label="training")
    validation = None
    if split.validation:
        validation = prepare(split.validation, tokenizer, cache_dir=cache, label="validation")
    torch.manual_seed(config.train.seed)
    model = Model(
        config.model,
        vocab_size=tokenizer.vocab_size,
        backend=config.train.backend,
    ).to(device)
    prompts = [d.prompt for d in (split.validation or split.training) if d.prompt is not None]
    training = Training(
        config,
        run,
        model,
        make_optimizer(model, config.train),
        tokenizer,
        data,
        validation,
        has_records=any(d.prompt is not None for d in split.training),
        sample_prompt=config.train.sample_prompt or (prompts[0] if prompts else ""),
        device=device,
        floor=cached_baselines(split.training, split.validation, cache_dir=cache)
        if split.validation
        else {},
    )
    for number, stage in enumerate(config.train.plan):
        batches_per_epoch(data, batch_plan(training, number, stage))  # refuses too little text
    return training


def _tokenizer(config: Config, run: Path, split: Split) -> Tokenizer:
    """The run's own tokenizer, or that of the run it begins from; else one trained here.

    It is trained on the training split alone.
    """
    own = run / "tokenizer.json"
    if own.exists():
        return Tokenizer.load(own)
    if config.train.init_from:
        return Tokenizer.load(_source(run, config) / "tokenizer.json")
    log_line(f"tokenizer    training {config.tokenizer.kind} on the training documents")
    texts = [text for d in split.training for text in (d.prompt, d.text) if text]
    return train_tokenizer(
        texts, kind=config.tokenizer.kind, vocab_size=config.tokenizer.vocab_size
    )


def _source(run: Path, config: Config) -> Path:
    return find_run(run.parent, config.train.init_from)


def _with_batch_size(config: Config, tokenizer: Tokenizer, device: torch.device) -> Config:
    if config.train.batch_size != "auto":
        return config
    size = largest_batch_size(config, vocab_size=tokenizer.vocab_size, device=device)
    log_line(f"batch size   {size}: the largest that fits into the memory it may use")
    return replace(config, train=replace(config.train, batch_size=size))


def _settle(training: Training, split: Split, changed: list[str]) -> None:
    """Go on from the last checkpoint, or begin; dtype and kernels are settled once for a run."""
    saved = latest_valid_checkpoint(training.run)
    if saved is None:
        training.undone = rollbacks(training.run)
        if training.config.train.init_from:
            _begin_from(training)
    else:
        restore_checkpoint(training, saved)
        log_line(f"going on     from step {training.at.step:,} of {training.total_steps:,}")
    before = {} if saved is None else saved.progress.get("circumstances", {})
    if any(before.get(name, now) != now for name, now in machine_of(training.device).items()):
        # Elsewhere another choice may be the best, and the bits are not the same in any case.
        training.at.dtype = training.at.backend = ""
    select_backends(training)
    training.circumstances = circumstances(split, training.at, training.device)
    changed = [*changed, *changed_circumstances(before, training.circumstances)]
    for line in changed:
        log_line(f"changed      {line}")
    training.model.train()
    if saved is None:  # so that a run killed before its first checkpoint repeats its choices
        save(training)


def select_backends(training: Training) -> None:
    """Settle the dtype of the products and whose kernels compute them, and say so."""
    config = training.config.train
    if training.device.type == "cpu":
        log_line(f"compiler     {compile_kernels()}")
    if config.dtype != "auto" or not training.at.dtype:
        training.at.dtype, _ = resolve_dtype(config, training.device)
    training.at.backend, why = training.model.select_backend(
        batch_size=max(stage.batch_size for stage in config.plan),
        precision="bf16" if training.at.dtype == "bf16" else "fp32",
        previous=training.at.backend,
    )
    log_line(f"device       {describe(training.device)}, {training.at.dtype}")
    log_line(f"kernels      {training.at.backend}: {why}")


def compile_kernels() -> str:
    """Compile what is not compiled yet, and tell what came of it."""
    began = time.perf_counter()
    missing = [name for name in loader.names() if loader.build(name) is None]
    if missing:
        return f"torch alone, slower: {loader.unavailable_reason(missing[0])}"
    seconds = time.perf_counter() - began
    how = f"compiled in {seconds:.0f} s" if seconds >= 1 else "there already"
    return f"{loader.compiler_version() or 'none'}: kernels {how}"


def _begin_from(training: Training) -> None:
    """The best weights of another run, in place of random ones."""
    source = _source(training.run, training.config)
    path = source / "model.safetensors"
    load_weights(training.model, read_tensors(path), path)
    step = read_json(source / "config.json", needed=["step"])["step"]
    log_line(f"begins with  the weights of {source}, step {step:,}")


def _header(training: Training) -> None:
    """What is trained on what, before the first step."""
    config, model, data = training.config, training.model, training.data
    number, stage, _ = stage_at(config.train, 0)
    parts = ", ".join(f"{part} {n:,}" for part, n in parameters_by_part(model).items())
    accumulated = config.train.grad_accum_steps
    epoch = batches_per_epoch(data, batch_plan(training, number, stage)) / accumulated
    held_out = training.validation.n_bytes if training.validation else 0
    log_line(f"tokenizer    {training.tokenizer.kind}, {training.tokenizer.vocab_size:,} tokens")
    log_line(
        f"data         {data.n_inputs:,} training tokens ({data.n_bytes / 1e6:.1f} MB), "
        f"{held_out / 1e6:.1f} MB held out"
    )
    if training.floor:
        said = ", ".join(f"{name} {value:.3f}" for name, value in training.floor.items())
        log_line(f"to beat      bits per byte on the held-out text: {said}")
    log_line(f"model        {config.model.mixer}, {parameter_count(model):,} parameters: {parts}")
    log_line(
        f"cost         {flops_per_token(model, stage.seq_len) / 1e6:.1f} MFLOP forward per token, "
        f"{state_bytes(model, batch_size=1, seq_len=stage.seq_len):,} bytes of state per sequence"
    )
    log_line(
        f"plan         {training.total_steps:,} steps of "
        f"{stage.seq_len * stage.batch_size * accumulated:,} tokens, "
        f"{epoch:,.1f} steps per epoch; run folder {training.run}"
    )


def device_of(config: TrainConfig) -> torch.device:
    """The device asked for; `auto` is CUDA where there is one."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "train.device: cuda was asked for, and torch sees none here",
            "Type --set train.device=cpu, or install a CUDA build of torch.",
        )
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def resolve_dtype(config: TrainConfig, device: torch.device) -> tuple[str, str]:
    """The dtype of the products' operands, and why; `auto` takes bf16 where it is worth it."""
    if config.dtype != "auto":
        return config.dtype, "as configured"
    gain = product_rate(torch.bfloat16, device) / product_rate(torch.float32, device)
    dtype = "bf16" if gain >= BF16_GAIN else "fp32"
    return dtype, f"bf16 products have {gain:.1f} times the speed, {BF16_GAIN} is what they need"


def describe(device: torch.device) -> str:
    """The device for the header, and for telling one machine from another."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"
