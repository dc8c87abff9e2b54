"""One run's configuration: what each field means, and where each value comes from.

Later sources win: defaults, the YAML file, `YS_*` in the environment, `--set`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ys_llm.config.conflicts import conflicts
from ys_llm.config.strict_reader import (
    StrictReader,
    field_helps,
    flatten,
    join,
    parse_dataclass,
    raise_problems,
    setting,
    to_plain,
)
from ys_llm.config.yaml_io import YamlText, dump_inline, dump_yaml, parse_yaml, read_yaml
from ys_llm.errors import UserError

__all__ = [
    "Config",
    "DataConfig",
    "GenerateConfig",
    "Kind",
    "ModelConfig",
    "Resolved",
    "Stage",
    "TokenizerConfig",
    "TrainConfig",
    "annotated_yaml",
    "from_mapping",
    "load_config",
    "load_dataclass",
    "parse_dataclass",
    "setting",
    "to_mapping",
    "to_yaml",
]

Kind = Literal["bpe", "words", "chars", "bytes"]

_ENVIRONMENT_PREFIX = "YS_"
_NOT_FIELDS = ("YS_DEBUG",)  # read by cli.py
_GREATEST_BATCH = 1 << 20
_GREATEST_WIDTH = 1 << 20  # no machine trains a wider matrix, and sizes stay far below 64 bits
_COMMENT_COLUMN = 40  # of `ys config show`; a longer value pushes its own comment to the right


@dataclass(frozen=True)
class DataConfig:
    """Which text is read and how it is cut."""

    path: str = setting(
        "training_data",
        "file or folder of .txt, .md and .jsonl, read recursively",
        pattern=r"[^\0]+",
        pattern_help="the path of a file or folder",
    )
    validation_fraction: float = setting(
        0.05, "share of documents held out, chosen by hash", minimum=0.0, below=1.0
    )
    batching: Literal["shuffled", "contiguous"] = setting(
        "shuffled", "windows: shuffled pieces; streams: text in order, state carried across batches"
    )
    reset_at_document: bool = setting(True, "forget the state where a document starts")


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens."""

    kind: Kind = field(
        default="bpe",
        metadata={"help": "bpe: byte-level pairs; words: whole words; chars; bytes"},
    )
    vocab_size: int = setting(
        4096,
        "tokens at most, control tokens too; chars and bytes take what they need",
        minimum=258,  # the control tokens and the bytes
        maximum=_GREATEST_WIDTH,
    )


@dataclass(frozen=True)
class ModelConfig:
    """The trunk, and the one part of it that differs between models: the mixer."""

    block: Literal["pre_norm", "plain"] = setting(
        "pre_norm", "pre_norm: residual blocks; plain: embedding, mixer, head and nothing else"
    )
    d_model: int = setting(256, "width of the residual stream", minimum=1, maximum=_GREATEST_WIDTH)
    n_layers: int = setting(4, "number of blocks", minimum=1, maximum=1000)
    d_mlp: int = setting(
        688, "hidden width of the SwiGLU MLP; 0 = no MLP", minimum=0, maximum=_GREATEST_WIDTH
    )
    tie_embeddings: bool = setting(False, "share one matrix between embedding and head")
    dropout: float = setting(0.0, "share of activations dropped", minimum=0.0, below=1.0)
    mixer: str = setting(
        "three_tier",
        "sequence mixer: a file of ys_llm/mixers/",
        pattern=r"[a-z][a-z0-9_]*",
        pattern_help="the name of a file of ys_llm/mixers/, without .py",
    )
    options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "the mixer's own options, as its file lists them"}
    )


@dataclass(frozen=True)
class Stage:
    """One part of a staged training."""

    seq_len: int = field(metadata={"help": "tokens per sequence", "minimum": 1})
    batch_size: int = field(
        metadata={"help": "sequences per batch", "minimum": 1, "maximum": _GREATEST_BATCH}
    )
    steps: int = field(metadata={"help": "optimizer steps", "minimum": 1})


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    max_steps: int = setting(2000, "optimizer steps in all", minimum=1)
    seq_len: int = setting(256, "tokens per sequence", minimum=1)
    batch_size: int | Literal["auto"] = setting(
        32,
        "sequences per batch; auto = as many as fit into memory, settled once a run",
        minimum=1,
        maximum=_GREATEST_BATCH,
    )
    grad_accum_steps: int = setting(1, "batches summed into one optimizer step", minimum=1)
    stages: tuple[Stage, ...] = setting(
        (), "list of {seq_len, batch_size, steps}; replaces max_steps, seq_len and batch_size"
    )
    learning_rate: float = setting(3e-3, "peak of the schedule", minimum=1e-30)
    schedule: Literal["linear", "cosine", "constant_sqrt_cooldown"] = setting(
        "linear", "how the learning rate goes from its peak to final_learning_rate"
    )
    warmup_steps: int = setting(50, "steps of linear rise to the peak", minimum=0)
    cooldown_fraction: float = setting(
        0.2,
        "last share of the steps, in which constant_sqrt_cooldown decays",
        minimum=0.0,
        maximum=1.0,
    )
    final_learning_rate: float = setting(0.0, "learning rate of the last step", minimum=0.0)
    weight_decay: float = setting(0.1, "AdamW's decay, on matrices only", minimum=0.0)
    beta1: float = setting(0.9, "AdamW's memory of the gradient", minimum=0.0, below=1.0)
    beta2: float = setting(0.95, "AdamW's memory of its square", minimum=0.0, below=1.0)
    grad_clip: float = setting(1.0, "greatest norm of the gradient; 0 = no clipping", minimum=0.0)
    eval_interval: int = setting(200, "steps between evaluations", minimum=1)
    eval_tokens: int = setting(200_000, "validation tokens per evaluation; 0 = all", minimum=0)
    checkpoint_interval: int = setting(200, "steps between checkpoints", minimum=1)
    keep_checkpoints: int = setting(2, "newest checkpoints kept, beside the best one", minimum=1)
    keep_checkpoint_every: int = setting(
        0, "steps between checkpoints kept for good; 0 = none", minimum=0
    )
    on_spike: Literal["log", "rollback"] = setting(
        "log",
        "a loss far above the last ones is written down, or undone like one that is no number",
    )
    max_rollbacks: int = setting(
        3, "times a run goes back to a checkpoint before it gives up", minimum=0
    )
    rollback_lr_factor: float = setting(
        0.5, "share of the learning rate that is left each time", above=0.0, maximum=1.0
    )
    rollback_steps: int = setting(
        50, "steps for which it is left the first time; then 4 and 16 times as many", minimum=0
    )
    sample_interval: int = setting(500, "steps between samples of text; 0 = none", minimum=0)
    sample_prompt: str = setting("", "what the samples of text go on from")
    patience: int = setting(
        0, "evaluations without improvement before stopping early; 0 = never", minimum=0
    )
    seed: int = setting(1337, "initial weights, batch order and dropout", minimum=0)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto = cuda where there is one")
    dtype: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "auto = bf16 where it is 1.5 times as fast"
    )
    backend: str = setting("auto", "of the mixer's op: auto, reference, or one of its own")
    threads: int = setting(0, "CPU threads; 0 = as many as there are", minimum=0, maximum=1024)
    deterministic: bool = setting(
        False, "kernels that give the same bits each time on CUDA too; slower there"
    )
    memory_limit_gb: float = setting(
        0.0, "memory that batch_size: auto may use; 0 = 80 % of what is free", minimum=0.0
    )
    init_from: str = setting("", "run whose weights and tokenizer a new run begins with")

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages, or the one stage that seq_len, batch_size and max_steps describe."""
        if self.stages:
            return self.stages
        assert self.batch_size != "auto", "train.batch_size: auto is settled before the plan"
        return (Stage(self.seq_len, self.batch_size, self.max_steps),)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages) or self.max_steps


@dataclass(frozen=True)
class GenerateConfig:
    """How the next token is drawn."""

    temperature: float = setting(0.8, "0 = always the likeliest token", minimum=0.0)
    top_k: int = setting(0, "draw from the k likeliest; 0 = all", minimum=0)
    top_p: float = setting(
        0.95, "draw from the likeliest that together have this probability", above=0.0, maximum=1.0
    )
    min_p: float = setting(
        0.0, "drop tokens below this share of the likeliest one", minimum=0.0, maximum=1.0
    )
    repetition_penalty: float = setting(1.0, "above 1: tokens seen become less likely", above=0.0)
    max_tokens: int = setting(256, "tokens written at most", minimum=0)
    seed: int | None = setting(None, "same seed, same text; null = a new one each time", minimum=0)


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    run: str = setting(
        "default",
        "name of the run: its folder under runs/",
        pattern=r"\w[\w.-]{0,59}",  # at 4 bytes a letter still a name that file systems take
        pattern_help="a folder name of at most 60 letters, digits, '_', '-' and '.'",
    )
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)


@dataclass(frozen=True)
class Resolved:
    """A configuration, and for each dotted name where its value came from."""

    config: Config
    origins: Mapping[str, str]  # "default" | "configs/x.yaml:12" | "YS_TRAIN__SEED" | "--set"


def load_config(
    path: Path | None,
    *,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Resolved:
    """Read `path`, then YS_* of `environment`, then `overrides` ("train.seed=7"); later ones win.

    Raises UserError with every problem of every source, one a line, with file and line.
    """
    sources = _Sources()
    if path is not None:
        sources.add_file(read_yaml(path), str(path))
    for name, text in sorted((environment or {}).items()):
        if name.upper().startswith(_ENVIRONMENT_PREFIX) and name.upper() not in _NOT_FIELDS:
            dotted = name[len(_ENVIRONMENT_PREFIX) :].lower().replace("__", ".")
            sources.put(dotted, text, origin=name)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if equals and dotted.strip():
            sources.put(dotted.strip(), text, origin="--set")
        else:
            sources.problems.append(f"--set {override}: expected NAME=VALUE, as in train.seed=7")
    return sources.resolve()


def load_dataclass(cls: type[Any], path: Path) -> Any:
    """Read a YAML file as a `cls`; for files other than configurations, such as recipes."""
    sources = _Sources()
    sources.add_file(read_yaml(path), str(path))
    return sources.parse(cls)


def from_mapping(mapping: Mapping[str, Any]) -> Config:
    """Read what `to_mapping` made; raises UserError on anything else."""
    return parse_dataclass(Config, mapping, where="configuration")


def to_mapping(config: Config) -> dict[str, Any]:
    """Return dicts, lists and scalars that JSON and YAML can hold."""
    mapping: dict[str, Any] = to_plain(config)
    return mapping


def to_yaml(config: Config) -> str:
    """Write a configuration file that gives `config` back."""
    return dump_yaml(to_mapping(config))


def annotated_yaml(resolved: Resolved) -> str:
    """Write a configuration file whose comments say where each value comes from and its meaning."""
    helps = field_helps(Config)
    rows = list(_rows(to_mapping(resolved.config), "", depth=0))
    width = min(_COMMENT_COLUMN, max(len(text) for text, _ in rows))
    origin_width = max(len(origin) for origin in resolved.origins.values())
    lines = []
    for text, path in rows:
        comment = (
            f"# {resolved.origins[path]:<{origin_width}}  {helps.get(path, '')}" if path else ""
        )
        lines.append(f"{text:<{width}}  {comment}".rstrip())
    return "\n".join(lines) + "\n"


def _rows(mapping: Mapping[str, Any], prefix: str, *, depth: int) -> Iterator[tuple[str, str]]:
    for name, value in mapping.items():
        head, path = f"{'  ' * depth}{dump_inline(name)}:", join(prefix, name)
        if isinstance(value, Mapping) and value:
            yield head, ""
            yield from _rows(value, path, depth=depth + 1)
        else:
            yield f"{head} {dump_inline(value)}", path


class _Sources:
    """Plain values merged from several places, each with its origin."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}

    def add_file(self, text: YamlText, name: str) -> None:
        self.problems += [f"{name}:{line}: {message}" for line, message in text.problems]
        self._origins.update({path: f"{name}:{line}" for path, line in text.lines.items()})
        self._origins[""] = name
        if isinstance(text.values, dict):
            self._values = text.values
        elif text.values is not None and not text.problems:
            expected = "expected NAME: VALUE lines, as `ys config show` prints them"
            self.problems.append(f"{name}:{text.lines['']}: {expected}")

    def put(self, dotted: str, text: str, *, origin: str) -> None:
        """Set one value, written as YAML."""
        try:
            parsed = parse_yaml(text, name=f"{origin} {dotted}")
        except UserError as error:
            self.problems.append(f"{error.problem}. Put it in quotes to make it text.")
            return
        self.problems += [f"{origin} {dotted}: {message}" for _, message in parsed.problems]
        *parents, name = dotted.split(".")
        inner, path = self._values, ""
        for parent in parents:
            inner, path = inner.setdefault(parent, {}), join(path, parent)
            self._origins.setdefault(path, origin)
            if not isinstance(inner, dict):
                self.problems.append(f"{origin}: {path} is a single value, {dotted} is not a field")
                return
        inner[name] = parsed.values if text.strip() else ""
        for known in [known for known in self._origins if known.startswith(f"{dotted}.")]:
            del self._origins[known]
        self._origins[dotted] = origin

    def parse(self, cls: type[Any]) -> Any:
        reader = StrictReader(cls, self._origin)
        instance = reader.read(cls, self._values, "")
        raise_problems(self.problems + reader.problems)
        return instance

    def resolve(self) -> Resolved:
        config = self.parse(Config)
        given, values = flatten(self._values), flatten(to_mapping(config))
        origins = {path: self._origin(path) if path in given else "default" for path in values}
        defaults = {**dict.fromkeys(values), **flatten(to_mapping(Config()))}
        raise_problems(conflicts(values, defaults=defaults, origins=origins))
        return Resolved(config, origins)

    def _origin(self, path: str) -> str:
        while path and path not in self._origins:
            path = path.rpartition(".")[0]
        return self._origins.get(path, "configuration")
