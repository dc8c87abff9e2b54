"""Fine-tuning: what `ys sft` sets up in place of pretraining's corpus and new model.

The loop is the same. The examples come from conversations, records or texts, and of each the
replies alone are learned; the model is that of the base, with adapters or with a state to be
learned where not all of it is.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ys_llm.config.schema import Config
from ys_llm.config.sources import load_config
from ys_llm.data import conversations
from ys_llm.data.chat import Conversation, PreferencePair
from ys_llm.data.conversations import as_conversation
from ys_llm.data.examples import (
    Example,
    Pairs,
    example_of,
    example_of_document,
    pairs_of,
    shard_of,
    too_long,
)
from ys_llm.data.records import Document
from ys_llm.data.remote import is_remote
from ys_llm.data.shards import TokenShard, load_or_tokenize
from ys_llm.data.split import Split, SplitRecord, split_documents
from ys_llm.data.split_cache import load_split
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError, command_line
from ys_llm.evaluation.bits_per_byte import evaluate_tokens
from ys_llm.model.language_model import Model
from ys_llm.model.lora import add_learned_parts
from ys_llm.runs.folder import MODEL, SPLIT, find_run
from ys_llm.runs.model_files import LoadedRun, load_weights, weights, with_vocabulary
from ys_llm.training.budget import with_steps
from ys_llm.training.metrics import log_line


@dataclass(frozen=True)
class Source:
    """What is fine-tuned on: documents on both sides of the split, and what they stand for.

    A conversation or a pair stands in the split as a document with its text, so that the same rules
    decide on its side; `found` has it by the hash of that document.
    """

    split: Split
    found: Mapping[str, Conversation | PreferencePair] = field(default_factory=dict)

    @property
    def needs_roles(self) -> bool:
        """Whether the tokenizer needs the tokens of roles."""
        return bool(self.found)


def read_examples(
    config: Config, base: Path, *, command: str, scratch: Path
) -> conversations.Examples:
    """The examples of `data.path`.

    For a base that knows the tokens of roles, a record is a conversation of two turns.
    """
    root = config.data.path if is_remote(config.data.path) else Path(config.data.path)
    examples = conversations.read_examples(root, config.data, command=command, scratch=scratch)
    if Tokenizer.load(base / "tokenizer.json").has_roles:
        examples.found = [as_conversation(one) for one in examples.found]
    return examples


def load_source(config: Config, examples: conversations.Examples, record: SplitRecord) -> Source:
    """Split the examples by their content; UserError where they are not of the objective."""
    kind = PreferencePair if config.sft.objective == "preferences" else Conversation
    found: dict[str, Conversation | PreferencePair] = {}
    documents: list[Document] = []
    for example in examples.found:
        if isinstance(example, Document):
            documents.append(example)
            continue
        documents.append(_document_of(example))
        found[documents[-1].content_hash] = example
    wrong = sum(not isinstance(one, kind) for one in found.values())
    if kind is PreferencePair and (wrong or len(found) < len(documents)):
        raise UserError(
            f"{config.data.path}: sft.objective is preferences, and "
            f"{wrong + len(documents) - len(found):,} of {len(documents):,} records are no pairs",
            'Give records with "chosen" and "rejected" replies',
        )
    if kind is Conversation and wrong:
        raise UserError(
            f"{config.data.path} holds {wrong:,} preference pairs",
            "To learn from them, type --set sft.objective=preferences",
        )
    fraction = config.data.validation_fraction
    split = split_documents(documents, validation_fraction=fraction, record=record)
    split.notes.update(examples.tally.notes())
    return Source(split, found)


def _document_of(example: Conversation | PreferencePair) -> Document:
    """What stands for an example in the split: its first turn as the prompt, and all its text."""
    parts = (
        [example.turns]
        if isinstance(example, Conversation)
        else [(*example.prompt, *example.chosen), example.rejected]
    )
    turns = [turn for part in parts for turn in part]
    text = "\n".join(f"{turn.role}: {turn.text}" for turn in turns)
    prompt = next((turn.text for turn in turns if turn.role == "user"), "")
    return Document(text, prompt, example.source)


def base_run(config: Config, folder: Path) -> Path:
    """The folder of the base; UserError where there is none, never a model of random weights."""
    if not config.train.init_from:
        raise UserError(
            f"sft.method is {config.sft.method}, and train.init_from names no run to fine-tune",
            f"Type: {command_line('sft', 'BASE', config.data.path)}",
        )
    return find_run(folder.parent, config.train.init_from)


def tuned_tokenizer(base: Path, source: Source, config: Config) -> Tokenizer:
    """The base's tokenizer, with the tokens of roles where the examples are conversations."""
    tokenizer = Tokenizer.load(base / "tokenizer.json")
    if not source.needs_roles or tokenizer.has_roles:
        return tokenizer
    if config.sft.method == "state":
        raise UserError(
            f"{base} has never seen a conversation: a state cannot teach it the tokens of roles",
            f"Fine-tune it first: {command_line('sft', base.name, config.data.path)}",
        )
    return tokenizer.with_roles()


def encode(
    config: Config, source: Source, side: Sequence[Document], tokenizer: Tokenizer
) -> TokenShard | None:
    """One side of the split as examples; logs those that are too long, and those without a reply.

    None for an empty side.
    """
    examples = [_example(document, source, tokenizer) for document in side]
    useful = [example for example in examples if example.rendered.n_learned]
    if len(useful) < len(examples):
        log_line(f"no reply     {len(examples) - len(useful):,} examples are left out: no reply")
    follows = "their ends go on in the next row, with the state"
    if config.sft.method == "state" or config.data.long_documents == "crop":
        follows = "their ends not read"
    elif config.data.long_documents == "cut":
        follows = "their ends go on in another row, without the state"
    if line := too_long(useful, config.train.plan[0].seq_len, follows):
        log_line(f"too long     {line}")
    return shard_of(useful, tokenizer) if useful else None


def _example(document: Document, source: Source, tokenizer: Tokenizer) -> Example:
    found = source.found.get(document.content_hash)
    if isinstance(found, Conversation):
        return example_of(found, tokenizer)
    return example_of_document(document, tokenizer)


def encode_pairs(source: Source, side: Sequence[Document], tokenizer: Tokenizer) -> Pairs | None:
    """One side of the split as preference pairs; None for an empty side."""
    pairs = [source.found[document.content_hash] for document in side]
    found = [pair for pair in pairs if isinstance(pair, PreferencePair)]
    return pairs_of(found, tokenizer) if found else None


def tuned_model(config: Config, tokenizer: Tokenizer, base: LoadedRun) -> Model:
    """The base's model, and beside it what is to be learned."""
    if base.model.initial_state is not None:
        raise UserError(
            f"{base.path} has learned an initial state, and no weights to start from",
            f"Fine-tune its base: {base.config.train.init_from}",
        )
    model = Model(config.model, vocab_size=tokenizer.vocab_size, backends=config.train.backend)
    n_new = tokenizer.vocab_size - base.tokenizer.vocab_size
    load_weights(model, weights(with_vocabulary(base, tokenizer)), base.path / MODEL)
    add_learned_parts(model, config.sft, n_new)
    return model


def with_epochs(config: Config, batches_of_epoch: int) -> Config:
    """The configuration with as many steps as `sft.epochs` come to, where they decide."""
    if config.sft.epochs is None or config.train.minutes is not None:
        return config
    batches = config.sft.epochs * batches_of_epoch
    return with_steps(config, max(1, math.ceil(batches / config.train.grad_accum_steps)))


def base_text(
    config: Config, base: LoadedRun, tokenizer: Tokenizer, cache: Path
) -> tuple[TokenShard | None, TokenShard | None]:
    """Training and held-out text of what the base was pretrained on, as tokens of this run.

    The first is None without `sft.replay`. Where the text is not there to measure forgetting on,
    a line says so, and both are None; UserError where it is to be mixed in.
    """
    try:
        root, settings = pretrained(base.path)
        with tempfile.TemporaryDirectory(prefix="ys-base-") as scratch:
            record = SplitRecord.load(root / SPLIT)
            split = load_split(settings.data, record=record, scratch=Path(scratch))
            sides = {"base": split.training if config.sft.replay else [], "base, held out": []}
            sides["base, held out"] = split.validation
            shards = [
                load_or_tokenize(side, tokenizer, cache_dir=cache, label=label) if side else None
                for label, side in sides.items()
            ]
    except UserError as error:
        if config.sft.replay:
            raise
        log_line(f"base text    not found, so that forgetting is not measured: {error.problem}")
        return None, None
    return shards[0], shards[1]


def pretrained(run: Path) -> tuple[Path, Config]:
    """The run that this one goes back to, if it was fine-tuned, and its settings."""
    while (config := load_config(run / "config.yaml").config).sft.method != "none":
        run = find_run(run.parent, config.train.init_from)
    return run, config


def bits_per_byte_of_base(config: Config, model: Model, held_out: TokenShard | None) -> float:
    """The base's own bits per byte of its held-out text, NaN without one."""
    if held_out is None:
        return math.nan
    train = config.train
    seq_len, most = train.plan[-1].seq_len, train.eval_tokens
    return evaluate_tokens(model, held_out, seq_len=seq_len, max_tokens=most).bits_per_byte


def learned_line(config: Config, model: Model) -> str:
    """What is trained, for the header."""
    n = sum(p.numel() for p in model.parameters() if p.requires_grad)
    of = sum(p.numel() for p in model.parameters())
    named = {"full": "all weights", "lora": "adapters", "state": "the initial state"}
    method = named.get(config.sft.method, "all weights")
    return f"trained      {method}: {n:,} of {of:,} parameters, {n / of:.2%}"
