"""What may be set for a run: one dataclass a section, one field a setting."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, Literal

from ys_llm.config.copying import CopyConfig as CopyConfig
from ys_llm.config.cross import CrossConfig
from ys_llm.config.default_options import DEFAULT_OPTIONS, default_options
from ys_llm.config.sft import SftConfig
from ys_llm.config.strict_reader import setting

TokenizerKind = Literal["bpe", "bpe_joiner", "words", "chars", "bytes"]
DataFormat = Literal[
    "auto", "text", "records", "messages", "conversations", "alpaca", "prompt", "preferences"
]
Included = Literal["code", "html"]
Batching = Literal["shuffled", "contiguous", "documents"]
LongDocuments = Literal["carry", "cut", "crop"]

_MIXER_NAME = r"[a-z][a-z0-9_]*"
_MAX_BATCH = 1 << 20
_MAX_WIDTH = 1 << 20  # wider than any machine trains; sizes stay far below 64 bits
_MAX_MINUTES = 366 * 24 * 60
_INTERVALS = ("warmup_steps", "eval_interval", "checkpoint_interval", "sample_interval")


@dataclass(frozen=True)
class DataConfig:
    """The text, and how it becomes batches."""

    path: str = setting(
        "training_data",
        "file or folder of text or records, read recursively; or its address (s3://...)",
        pattern=r"[^\0]+",
        pattern_help="the path of a file or folder",
    )
    format: DataFormat = field(
        default="auto",
        metadata={
            "help": ".txt and .md: text = plain, records = with <start> and <end>; others: what "
            "records are read as; auto = by what is found"
        },
    )
    on_bad_record: Literal["stop", "skip"] = setting(
        "stop", "a record that fits no form: an error, or left out and listed"
    )
    on_bad_shard: Literal["stop", "skip"] = setting(
        "stop",
        "a file of text that is missing, cut off or corrupt: an error, or left out and listed",
    )
    include: tuple[Included, ...] = setting(
        (),
        "files to read besides: code = source code as it is; html = the main text of web pages",
    )
    validation_fraction: float = setting(
        0.05, "fraction of documents held out, chosen by content hash", minimum=0.0, below=1.0
    )
    batching: Batching = field(
        default="shuffled",
        metadata={
            "help": "shuffled: random pieces; contiguous: text in order, state carried over; "
            "documents: rows begin at documents"
        },
    )
    long_documents: LongDocuments = field(
        default="carry",
        metadata={
            "help": "what does not fit into its row: carry = goes on in the next, with its "
            "state; cut = goes on in another, without; crop = the rest is not read"
        },
    )
    reset_at_document: bool = setting(True, "reset the state at document boundaries")

    @property
    def carries_state(self) -> bool:
        """Whether each row of a batch goes on where that of the batch before it stopped."""
        with_documents = self.batching == "documents" and self.long_documents == "carry"
        return with_documents or self.batching == "contiguous"


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens."""

    kind: TokenizerKind = field(
        default="bpe",
        metadata={
            "help": "bpe: byte-level BPE; bpe_joiner: a word is the same tokens with and without a "
            "space before it; words: whole words; chars; bytes"
        },
    )
    vocab_size: int = setting(
        4096,
        "most tokens, control tokens included; chars and bytes use as many as they need",
        minimum=258,  # the control tokens and the bytes
        maximum=_MAX_WIDTH,
    )
    control_tokens: int = setting(
        2,
        "ids that no text has: <end>, <start>; from 6 on also those of roles; then spare ones",
        minimum=2,
        maximum=64,
    )


@dataclass(frozen=True)
class ModelConfig:
    """The trunk of the model and the sequence mixers of its layers."""

    size: str | None = setting(
        None, "sets width, depth, state, batch and rate together; auto = by train.minutes"
    )
    block: Literal["pre_norm", "plain"] = setting(
        "pre_norm", "pre_norm: residual blocks; plain: embedding, mixer and head only"
    )
    d_model: int = setting(256, "width of the residual stream", minimum=1, maximum=_MAX_WIDTH)
    n_layers: int = setting(4, "number of blocks", minimum=1, maximum=1000)
    d_mlp: int = setting(608, "hidden width of the MLP; 0 = no MLP", minimum=0, maximum=_MAX_WIDTH)
    mlp: Literal["swiglu", "channel_mix"] = setting(
        "swiglu", "channel_mix: that of RWKV-6, which also sees the token before"
    )
    tie_embeddings: bool = setting(False, "share one matrix between embedding and head")
    dropout: float = setting(0.0, "dropout probability", minimum=0.0, below=1.0)
    layers: tuple[str, ...] = setting(
        ("three_tier",), "mixer of each layer, files of ys_llm/mixers/; repeated over the depth"
    )
    layer_order: tuple[int, ...] = setting(
        (), "blocks by number, from 0, as they are applied; one may come again; [] = each once"
    )
    prediction_heads: int = setting(
        1, "tokens ahead that training predicts; generation uses the first", minimum=1, maximum=16
    )
    convolution: int = setting(
        0, "taps of a causal convolution before each mixer, 2 to 4; 0 = none", minimum=0, maximum=4
    )
    copy: CopyConfig = field(
        default_factory=CopyConfig,
        metadata={"help": "the copy tier: a part of each prediction is one of the latest tokens"},
    )
    cross: CrossConfig = field(
        default_factory=CrossConfig,
        metadata={"help": "further layers that attend to one global cache"},
    )
    options: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: DEFAULT_OPTIONS,
        metadata={"help": "options of each mixer under its name, as its file lists them"},
    )

    def __post_init__(self) -> None:
        """Raise ValueError unless every entry of `layers` can be a file's name and is used."""
        if self.options is DEFAULT_OPTIONS:  # nothing was given
            object.__setattr__(self, "options", default_options(self.layers))
        for name in self.layers:
            if not re.fullmatch(_MIXER_NAME, name):
                raise ValueError(
                    f"layers must be names of files of ys_llm/mixers/, without .py, found {name!r}"
                )
        if not 0 < len(self.layers) <= self.n_layers:
            raise ValueError(
                f"layers must name 1 to {self.n_layers} mixers, one for each of n_layers, found "
                f"{len(self.layers)}"
            )
        if self.convolution == 1:
            raise ValueError("convolution must be 2 to 4 taps, or 0 for none, found 1")
        if self.layer_order and set(self.layer_order) != set(range(self.n_layers)):
            raise ValueError(
                f"layer_order must have each of 0 to {self.n_layers - 1}, the numbers of the "
                f"n_layers blocks, and no other, found {list(self.layer_order)}"
            )
        if self.cross.layers and self.d_model % (2 * self.cross.n_heads):
            raise ValueError(
                f"cross.n_heads {self.cross.n_heads} does not split d_model {self.d_model} into "
                "heads of even width"
            )
        if self.cross.layers and self.block == "plain":
            raise ValueError("cross.layers need block: pre_norm, found plain")
        if self.prediction_heads > 1 and not self.d_mlp:
            raise ValueError("prediction_heads above 1 need a width, and d_mlp is 0")

    @property
    def mixers_of_blocks(self) -> tuple[str, ...]:
        """The mixer of every block: `layers`, repeated over the depth."""
        return tuple(islice(cycle(self.layers), self.n_layers))

    @property
    def order(self) -> tuple[int, ...]:
        """The numbers of the blocks as they are applied."""
        return self.layer_order or tuple(range(self.n_layers))

    @property
    def mixer_names(self) -> tuple[str, ...]:
        """The mixers as they are applied, that of a block as often as the block."""
        mixers = self.mixers_of_blocks
        return tuple(mixers[number] for number in self.order)

    @property
    def depth(self) -> int:
        """How many blocks are applied, those of `cross` included."""
        return len(self.order) + self.cross.layers


@dataclass(frozen=True)
class Stage:
    """One stage of a training run in stages."""

    seq_len: int = field(metadata={"help": "tokens per sequence", "minimum": 1})
    batch_size: int = field(
        metadata={"help": "sequences per batch", "minimum": 1, "maximum": _MAX_BATCH}
    )
    steps: int = field(metadata={"help": "optimizer steps", "minimum": 1})
    blocks: tuple[int, ...] = setting((), "blocks that are trained alone; [] = the whole model")


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    max_steps: int = setting(2000, "optimizer steps in total", minimum=1)
    minutes: float | None = setting(
        None,
        "minutes of training, from which a measurement derives max_steps; null = max_steps decides",
        above=0.0,
        maximum=_MAX_MINUTES,
    )
    seq_len: int = setting(256, "tokens per sequence", minimum=1)
    batch_size: int | Literal["auto"] = setting(
        32,
        "sequences per batch; auto = as many as fit into memory, chosen once a run",
        minimum=1,
        maximum=_MAX_BATCH,
    )
    grad_accum_steps: int = setting(1, "batches accumulated for one optimizer step", minimum=1)
    stages: tuple[Stage, ...] = setting(
        (), "list of {seq_len, batch_size, steps}; replaces max_steps, seq_len and batch_size"
    )
    optimizer: Literal["adamw", "muon"] = setting(
        "adamw", "muon: the matrices of the layers by Muon, all else by AdamW"
    )
    learning_rate: float = setting(3e-3, "peak learning rate", minimum=1e-30)
    schedule: Literal["linear", "cosine", "constant_sqrt_cooldown"] = setting(
        "linear", "shape of the decay from the peak to final_learning_rate"
    )
    warmup_steps: int | float = setting(
        50, "steps of linear warm-up to the peak; below 1: a share of all steps", minimum=0
    )
    cooldown_fraction: float = setting(
        0.2,
        "fraction of the steps, at the end, over which constant_sqrt_cooldown decays",
        minimum=0.0,
        maximum=1.0,
    )
    final_learning_rate: float = setting(0.0, "learning rate at the last step", minimum=0.0)
    weight_decay: float = setting(0.1, "AdamW weight decay, on matrices only", minimum=0.0)
    beta1: float = setting(0.9, "AdamW beta1", minimum=0.0, below=1.0)
    beta2: float = setting(0.95, "AdamW beta2", minimum=0.0, below=1.0)
    grad_clip: float = setting(1.0, "maximum gradient norm; 0 = no clipping", minimum=0.0)
    eval_interval: int | float = setting(
        200, "steps between evaluations; below 1: a share of all steps", above=0
    )
    eval_tokens: int = setting(200_000, "validation tokens per evaluation; 0 = all", minimum=0)
    checkpoint_interval: int | float = setting(
        200, "steps between checkpoints; below 1: a share of all steps", above=0
    )
    keep_checkpoints: int = setting(2, "newest checkpoints kept, besides the best one", minimum=1)
    keep_checkpoint_every: int = setting(
        0, "steps between checkpoints that are never deleted; 0 = none", minimum=0
    )
    on_spike: Literal["log", "rollback"] = setting(
        "log",
        "a loss spike is logged, or rolled back as a non-finite loss is",
    )
    max_rollbacks: int = setting(3, "rollbacks to a checkpoint before the run fails", minimum=0)
    rollback_lr_factor: float = setting(
        0.5, "factor on the learning rate after each rollback", above=0.0, maximum=1.0
    )
    rollback_steps: int = setting(
        50,
        "steps for which the factor holds after the first rollback; then 4 and 16 times as many",
        minimum=0,
    )
    sample_interval: int | float = setting(
        500, "steps between text samples; below 1: a share of all steps; 0 = none", minimum=0
    )
    sample_prompt: str = setting("", "prompt of the text samples")
    patience: int = setting(
        0, "evaluations without improvement before stopping early; 0 = never", minimum=0
    )
    seed: int = setting(1337, "initial weights, batch order and dropout", minimum=0)
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "auto = cuda where available", synonyms={"gpu": "cuda"}
    )
    dtype: Literal["auto", "fp32", "bf16"] = setting(
        "auto",
        "auto = bf16 where matmuls are 1.5 times as fast",
        synonyms={"bfloat16": "bf16", "float32": "fp32", "float": "fp32"},
    )
    backend: Mapping[str, str] = field(
        default_factory=dict,
        metadata={"help": "backend of each mixer under its name, as {three_tier: cpp}; else auto"},
    )
    threads: int = setting(0, "CPU threads; 0 = one a core", minimum=0, maximum=1024)
    shard: bool = setting(
        False, "several processes divide weights and moments: for models larger than a device"
    )
    deterministic: bool = setting(False, "bit-identical kernels on CUDA too; slower there")
    memory_limit_gb: float = setting(
        0.0, "memory for batch_size: auto; 0 = 80 % of what is free", minimum=0.0
    )
    init_from: str = setting("", "run whose weights and tokenizer a new run starts from")
    reference_run: str = setting("", "run by whose losses the tokens to train are selected")
    select_fraction: float = setting(
        1.0,
        "share of the tokens that are trained: those whose loss exceeds reference_run's the most",
        above=0.0,
        maximum=1.0,
    )

    teacher: str = setting("", "run whose predictions are learned too; of the same tokenizer")
    teacher_weight: float = setting(0.5, "their share of the loss", above=0.0, maximum=1.0)
    teacher_temperature: float = setting(1.0, "temperature of both", above=0.0)

    def __post_init__(self) -> None:
        """Raise ValueError for an interval that is neither whole steps nor a share of all steps."""
        for name in _INTERVALS:
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise ValueError(
                    f"{name} must be a whole number of steps, or a share of them below 1, "
                    f"found {value}"
                )

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages, or the one stage that seq_len, batch_size and max_steps describe."""
        if self.stages:
            return self.stages
        assert self.batch_size != "auto", "train.batch_size: auto is resolved before the plan"
        return (Stage(self.seq_len, self.batch_size, self.max_steps),)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages together."""
        return sum(stage.steps for stage in self.stages) or self.max_steps


def in_steps(interval: float, total_steps: int) -> int:
    """An interval in steps: itself, or below 1 that share of `total_steps`, rounded up.

    Rounded up, so that a quarter never makes a fifth interval of the last few steps.
    """
    if interval == 0 or interval >= 1:
        return int(interval)
    return max(1, math.ceil(interval * total_steps - 1e-9))  # 0.1 * 30 is 3.0000000000000004


@dataclass(frozen=True)
class GenerateConfig:
    """How the next token is sampled."""

    temperature: float = setting(0.8, "0 = greedy decoding", minimum=0.0)
    top_k: int = setting(0, "sample from the k most likely tokens; 0 = all", minimum=0)
    top_p: float = setting(
        0.95,
        "nucleus sampling: fewest tokens that have this probability",
        above=0.0,
        maximum=1.0,
    )
    min_p: float = setting(
        0.0, "drop tokens below this fraction of the most likely one", minimum=0.0, maximum=1.0
    )
    repetition_penalty: float = setting(
        1.0, "above 1: repeated tokens become less likely", above=0.0
    )
    max_tokens: int = setting(256, "most tokens generated", minimum=0)
    seed: int | None = setting(None, "same seed, same text; null = a new seed each time", minimum=0)


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    run: str = setting(
        "default",
        "name of the run: its folder in runs/",
        pattern=r"\w[\w.-]{0,59}",  # at 4 bytes a letter still a valid file name
        pattern_help="a folder name of at most 60 letters, digits, '_', '-' and '.', the first of "
        "them no '-' or '.'",
    )
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
