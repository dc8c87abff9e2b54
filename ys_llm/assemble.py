"""Before the first step: corpus, tokenizer, shards, model and optimizer, as new or as they were."""

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from ys_llm import checkpoint
from ys_llm.config import Config, Stage, TrainConfig, load_config, to_mapping, to_yaml
from ys_llm.corpus import Split, read_documents, split_documents
from ys_llm.data import BatchPlan, TokenData, batches_per_epoch, prepare
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.evaluate import baselines
from ys_llm.files import write_atomically
from ys_llm.measure import (
    flops_per_token,
    parameter_count,
    parameters_by_part,
    product_rate,
    state_bytes,
)
from ys_llm.model import Model, State, unpack_state
from ys_llm.optim import make_optimizer
from ys_llm.progress import say
from ys_llm.settings import flatten
from ys_llm.tokenizer import Tokenizer, train_tokenizer

BF16_GAIN = 1.5  # bf16 products must be this much faster than fp32 ones to be worth their rounding
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # malloc.h
CARRIED = "carried."  # prefix of the carried state among a checkpoint's tensors


@dataclass
class Progression:
    """Where a training stands: all that a checkpoint must remember besides weights and moments."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_bits_per_byte: float = math.inf
    evaluations_since_best: int = 0
    dtype: str = ""
    implementation: str = ""


@dataclass
class Training:
    """Everything the loop works on."""

    config: Config
    run: Path
    model: Model
    optimizer: torch.optim.AdamW
    tokenizer: Tokenizer
    data: TokenData
    validation: TokenData | None
    has_records: bool
    sample_prompt: str
    device: torch.device
    at: Progression = field(default_factory=Progression)
    carried: State | None = None
    floor: dict[str, float] = field(default_factory=dict)  # bits per byte that a model has to beat

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole plan."""
        return self.config.train.total_steps

    @property
    def stopped_early(self) -> bool:
        """Whether the patience is at its end; a run goes on once it is given more."""
        return 0 < self.config.train.patience <= self.at.evaluations_since_best

    def autocast(self) -> torch.autocast:
        """bf16 operands where the run's dtype says so; weights and state stay float32."""
        enabled = self.at.dtype == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def set_up(config: Config, run: Path) -> Training:
    """Everything the loop needs, going on from the run's last checkpoint where there is one."""
    with torch.device("meta"):  # a model that cannot be built is told of before the text is read
        Model(config.model, vocab_size=1, implementation=config.train.implementation)
    _check_unchanged(run, config)
    _keep_freed_memory()
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    split = split_documents(
        read_documents(Path(config.data.path)), validation_fraction=config.data.validation_fraction
    )
    training = _assemble(config, run, split, _device(config.train))
    for number, stage in enumerate(config.train.plan):
        batches_per_epoch(training.data, batch_plan(training, number, stage))
    # Not before: the vocabulary of a text too short to train on must not outlive the complaint.
    training.tokenizer.save(run / "tokenizer.json")
    write_atomically(run / "config.yaml", to_yaml(config))
    _header(training)
    _settle(training)
    return training


def _keep_freed_memory() -> None:
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


def _assemble(config: Config, run: Path, split: Split, device: torch.device) -> Training:
    """Tokenizer and shards, as the run has them or as new; model and optimizer as new."""
    say(
        f"corpus       {config.data.path}: {len(split.training):,} training documents, "
        f"{len(split.validation):,} held out"
    )
    say(f"leak check   {split.leak_check}")
    tokenizer = _tokenizer(config, run, split)
    cache = run / "cache"
    data = prepare(split.training, tokenizer, cache_dir=cache, label="training")
    validation = None
    if split.validation:
        validation = prepare(split.validation, tokenizer, cache_dir=cache, label="validation")
    torch.manual_seed(config.train.seed)
    model = Model(
        config.model,
        vocab_size=tokenizer.vocab_size,
        implementation=config.train.implementation,
    ).to(device)
    prompts = [d.prompt for d in (split.validation or split.training) if d.prompt is not None]
    return Training(
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
        floor=baselines(split.training, split.validation) if split.validation else {},
    )


def _tokenizer(config: Config, run: Path, split: Split) -> Tokenizer:
    """The run's own tokenizer; where there is none, one trained on the training split alone."""
    path = run / "tokenizer.json"
    if path.exists():
        return Tokenizer.load(path)
    say(f"tokenizer    training {config.tokenizer.kind} on the training documents")
    texts = [text for d in split.training for text in (d.prompt, d.text) if text]
    return train_tokenizer(
        texts, kind=config.tokenizer.kind, vocab_size=config.tokenizer.vocab_size
    )


def _settle(training: Training) -> None:
    """Go on from the last checkpoint, or begin; dtype and kernels are settled once for a run."""
    found = checkpoint.checkpoints(training.run)
    if found:
        _restore(training, found[-1])
    config = training.config.train
    if config.dtype != "auto" or not training.at.dtype:
        training.at.dtype = _dtype(config, training.device)
    training.at.implementation, why = training.model.settle(
        batch_size=max(stage.batch_size for stage in config.plan),
        precision=training.at.dtype,
        taken=training.at.implementation,
    )
    say(f"device       {_describe(training.device)}, {training.at.dtype}")
    say(f"kernels      {training.at.implementation}: {why}")
    training.model.train()


def _restore(training: Training, path: Path) -> None:
    progress, tensors = checkpoint.load_checkpoint(path, training.model, training.optimizer)
    checkpoint.check_tokenizer(
        training.run, training.tokenizer, progress.pop("tokenizer_fingerprint")
    )
    training.at = Progression(**{f.name: progress[f.name] for f in fields(Progression)})
    torch.set_rng_state(tensors["random.cpu"])
    if training.device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], training.device)
    packed = {
        name.removeprefix(CARRIED): tensor.to(training.device)
        for name, tensor in tensors.items()
        if name.startswith(CARRIED)
    }
    if packed and _continues(training, packed):
        training.carried = unpack_state(packed)
    say(f"going on     from step {training.at.step:,} of {training.total_steps:,}")


def _continues(training: Training, packed: Mapping[str, Tensor]) -> bool:
    """Whether the coming batch has as many rows as the state; not so where the plan was changed."""
    if training.at.step >= training.total_steps:
        return False
    _, stage, _ = stage_at(training.config.train, training.at.step)
    return all(len(tensor) == stage.batch_size for tensor in packed.values() if tensor.dim())


def stage_at(config: TrainConfig, step: int) -> tuple[int, Stage, int]:
    """Number and stage that step belongs to, and the steps of the stage before it."""
    for number, stage in enumerate(config.plan):
        if step < stage.steps:
            return number, stage, step
        step -= stage.steps
    raise AssertionError(f"step {step} beyond the plan")


def batch_plan(training: Training, number: int, stage: Stage) -> BatchPlan:
    """The order of batches of stage `number`."""
    config = training.config
    return BatchPlan(
        config.data.layout,
        stage.seq_len,
        stage.batch_size,
        config.train.seed + number,  # stages must not all begin with the same windows
        training.tokenizer.end_id,
    )


def _header(training: Training) -> None:
    """What is trained on what, before the first step."""
    config, model, data = training.config, training.model, training.data
    number, stage, _ = stage_at(config.train, 0)
    parts = ", ".join(f"{part} {n:,}" for part, n in parameters_by_part(model).items())
    accumulated = config.train.grad_accum_steps
    epoch = batches_per_epoch(data, batch_plan(training, number, stage)) / accumulated
    held_out = training.validation.n_bytes if training.validation else 0
    say(f"tokenizer    {training.tokenizer.kind}, {training.tokenizer.vocab_size:,} tokens")
    say(
        f"data         {data.n_inputs:,} training tokens ({data.n_bytes / 1e6:.1f} MB), "
        f"{held_out / 1e6:.1f} MB held out"
    )
    if training.floor:
        said = ", ".join(f"{name} {value:.3f}" for name, value in training.floor.items())
        say(f"to beat      bits per byte on the held-out text: {said}")
    say(f"model        {config.model.mixer}, {parameter_count(model):,} parameters: {parts}")
    say(
        f"cost         {flops_per_token(model, stage.seq_len) / 1e6:.1f} MFLOP forward per token, "
        f"{state_bytes(model, batch_size=1, seq_len=stage.seq_len):,} bytes of state per sequence"
    )
    say(
        f"plan         {training.total_steps:,} steps of "
        f"{stage.seq_len * stage.batch_size * accumulated:,} tokens, "
        f"{epoch:,.1f} steps per epoch; run folder {training.run}"
    )


def _check_unchanged(run: Path, config: Config) -> None:
    """A model goes on as what it is: refuse another architecture, tokenizer or split."""
    if not (run / "tokenizer.json").exists() or not (run / "config.yaml").exists():
        return
    trained = bool(checkpoint.checkpoints(run))
    fixed = ("tokenizer.", *(("model.", "data.validation_fraction") if trained else ()))
    before = flatten(to_mapping(load_config(run / "config.yaml").config))
    now = flatten(to_mapping(config))
    changed = [
        f"{name} was {before.get(name)} and is now {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if name.startswith(fixed) and before.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(
            f"{run} cannot go on with another configuration: {'; '.join(changed)}",
            f"Take its own {run}/config.yaml, choose another --run, or train anew: "
            f"ys train clean all",
            exit_code=EXIT_USAGE,
        )


def _device(config: TrainConfig) -> torch.device:
    """The device asked for; `auto` is CUDA where there is one."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "train.device: cuda was asked for, and torch sees none here",
            "Type --set train.device=cpu, or install a CUDA build of torch.",
        )
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def _dtype(config: TrainConfig, device: torch.device) -> str:
    """`auto`: bf16 operands where their products are measured to be worth it."""
    if config.dtype != "auto":
        return config.dtype
    gain = product_rate(torch.bfloat16, device) / product_rate(torch.float32, device)
    return "bf16" if gain >= BF16_GAIN else "fp32"


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"
