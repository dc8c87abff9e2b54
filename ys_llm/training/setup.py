"""Before the first step: corpus, tokenizer, shards, model, optimizer, backends, checkpoint."""

from dataclasses import replace
from pathlib import Path

import torch

from ys_llm.config.schema import Config, DataConfig, TrainConfig
from ys_llm.config.sizes import AUTO
from ys_llm.config.sources import Resolved, load_config, to_yaml, with_size_of
from ys_llm.data.batches import batches_per_epoch
from ys_llm.data.document_table import first_prompt, has_prompts, in_hash_order, total_bytes
from ys_llm.data.records import Texts
from ys_llm.data.shards import load_or_tokenize
from ys_llm.data.split import Split, SplitRecord
from ys_llm.data.split_cache import load_split
from ys_llm.data.tokenizer import LEARNED_CHARS, Tokenizer, train_tokenizer
from ys_llm.data.words import common_words
from ys_llm.errors import UserError, command_line
from ys_llm.evaluation.baselines import cached_baselines
from ys_llm.model.language_model import Model
from ys_llm.runs.checkpoint import Checkpoint
from ys_llm.runs.folder import (
    COMMON_WORDS,
    MODEL,
    SPLIT,
    checkpoints,
    find_run,
    finish_clean,
    remove_temp_files,
    weights_file,
)
from ys_llm.runs.model_files import load_run, load_weights, read_json, read_tensors, weights
from ys_llm.system.files import write_atomically
from ys_llm.system.lock import HeldLock
from ys_llm.training.budget import fit_to_minutes, with_steps
from ys_llm.training.compute import Compute, previous_compute, select_backends, select_device
from ys_llm.training.corpus_facts import describe_corpus, sources_of
from ys_llm.training.frozen import check_blocks
from ys_llm.training.growth import fitted
from ys_llm.training.header import header_lines, plan_line
from ys_llm.training.memory import check_fits, largest_batch_size, release_freed_memory
from ys_llm.training.metrics import log_line
from ys_llm.training.optimizer import make_optimizer
from ys_llm.training.ranks.group import ALONE, Ranks
from ys_llm.training.ranks.together import begin_together, follow, lead
from ys_llm.training.resume import (
    ENVIRONMENT,
    check_checkpoints_exist,
    check_config,
    check_resume_step,
    environment_changes,
    environment_of,
    latest_valid_checkpoint,
    parse_progress,
    read_rollbacks,
    rewind,
)
from ys_llm.training.size import choose_size
from ys_llm.training.trainer import (
    Run,
    TrainingData,
    TrainState,
    batch_plan,
    check_folder,
    remove_old,
    restore_checkpoint,
    save,
)
from ys_llm.training.tuned_run import (
    base_environment,
    build_tuned,
    check_same_base,
    check_tuning_is_shareable,
)
from ys_llm.training.tuning import Source, base_run, load_source, read_examples


def set_up(
    resolved: Resolved,
    folder: Path,
    lock: HeldLock,
    *,
    resume_step: int | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Run, TrainState]:
    """Everything the loop needs, resumed from the run's latest checkpoint where there is one.

    The run's own files are written last: a run that is refused keeps its configuration. Of several
    processes the first prepares it, and the others `set_up_as_told`.
    """
    check_model(resolved.config)
    check_checkpoints_exist(folder, resolved)
    is_measured = has_saved_steps(folder, resolved.config)
    resolved = replace(resolved, config=with_saved_choices(folder, resolved.config))
    config, changes = resolved.config, check_config(folder, resolved)
    if resume_step is not None:
        check_resume_step(folder, resume_step)
    finish_clean(folder, corpus=Path(config.data.path))
    remove_temp_files(folder)
    source = source_of(resolved, config, folder, scratch=folder / "cache", keep=True)
    split = source.split
    run, state = build(config, folder, source, cache=folder / "cache", ranks=ranks)
    sources = sources_of(config, split.training)
    described = describe_corpus(config, split, run.data)
    run = replace(run, data=replace(run.data, sources=sources, described=described), lock=lock)
    for line in header_lines(run):
        log_line(line)
    if resume_step is not None:
        rewind(folder, resume_step)
    saved = latest_valid_checkpoint(folder)
    if saved is not None:
        parse_progress(saved)  # rejects a damaged one before its choices are reused
    before = {} if saved is None else saved.progress.get(ENVIRONMENT, {})
    check_same_base(before, run)
    previous = previous_compute(before, run.device) if before else run.compute
    compute = select_backends(run.config.train, run.model, previous)
    environment = environment_of(split, compute, processes=ranks.size) | base_environment(run)
    run, is_timed = replace(run, compute=compute, environment=environment), not is_measured
    is_timed &= config.train.minutes is not None
    lead(run, split.record, is_timed=is_timed, is_new=saved is None)
    if is_timed:
        run = fit_to_minutes(run)
    log_line(plan_line(run))
    changes = check_config(folder, replace(resolved, config=run.config))
    _restore_or_initialise(run, state, saved)
    for line in (*changes, *environment_changes(before, run.environment)):
        log_line(f"changed      {line}")
    check_folder(folder, lock)
    _write_what_is_fixed(run, split)
    run.model.train()
    run = begin_together(run, state)
    if saved is None:  # a run killed before its first checkpoint then repeats its choices
        save(run, state)
    else:
        remove_old(run, state)  # a run killed between saving and removing has one too many
    return run, state


def _write_what_is_fixed(run: Run, split: Split) -> None:
    """Configuration, split, common words and tokenizer."""
    folder = run.folder
    write_atomically(folder / "config.yaml", to_yaml(run.config), create_folder=False)
    split.record.save(folder / SPLIT)
    if not (folder / COMMON_WORDS).exists():
        common_words(split.training).save(folder / COMMON_WORDS)
    run.tokenizer.save(folder / "tokenizer.json")


def set_up_as_told(ranks: Ranks, runs_dir: Path) -> tuple[Run, TrainState]:
    """What `set_up` has prepared in the first process, in another one."""
    run, told = follow(ranks, runs_dir)
    if told["is_timed"]:
        run = fit_to_minutes(run)
    state = TrainState()
    run = begin_together(run, state)
    if told["is_new"]:
        save(run, state)
    return run, state


def source_of(
    resolved: Resolved, config: Config, folder: Path, *, scratch: Path, keep: bool = False
) -> Source:
    """The documents of a run on both sides of its split; `keep` stores the split of a large text.

    The examples of a run that is fine-tuned.
    """
    record, command = saved_split(folder), data_command(resolved)
    if config.sft.method != "none":
        base = base_run(config, folder)  # before anything is read
        found = read_examples(config, base, command=command, scratch=scratch)
        return load_source(config, found, record or SplitRecord())
    kept = scratch if keep else None
    return Source(
        load_split(config.data, record=record, command=command, scratch=scratch, cache_dir=kept)
    )


def check_model(config: Config) -> None:
    """Reject an invalid model before reading the corpus."""
    check_blocks(config)
    with torch.device("meta"):
        Model(config.model, vocab_size=1, backends=config.train.backend)


def data_command(resolved: Resolved) -> str:
    """What to type where the text of a run cannot be read; the default text can be generated."""
    command = resolved.train_command(data="PATH")
    generated = resolved.config.data.path == DataConfig().path
    generate = f", or generate text first: {command_line('gen-data')}" if generated else ""
    return command + generate


def saved_split(folder: Path) -> SplitRecord | None:
    """The run's record of its split; None for a new run."""
    return SplitRecord.load(folder / SPLIT) if checkpoints(folder) else None


def has_saved_steps(folder: Path, config: Config) -> bool:
    """Whether the run was measured for these minutes: resuming it, or again, changes no step."""
    saved = folder / "config.yaml"
    if config.train.minutes is None or not checkpoints(folder) or not saved.exists():
        return False
    return load_config(saved).config.train.minutes == config.train.minutes


def with_saved_choices(folder: Path, config: Config) -> Config:
    """What a run chooses once, by a measurement, it takes from its own configuration on resume.

    That is `model.size: auto`, `batch_size: auto`, for less memory may be free, and the steps of
    `minutes`.
    """
    measured = has_saved_steps(folder, config)
    sized = config.model.size == AUTO and checkpoints(folder)
    automatic = config.train.batch_size == "auto" and checkpoints(folder)
    if not (measured or sized or automatic):
        return config
    saved = load_config(folder / "config.yaml").config
    if sized:
        config = with_size_of(config, saved)
    if automatic:
        config = replace(config, train=replace(config.train, batch_size=saved.train.batch_size))
    return with_steps(config, saved.train.total_steps) if measured else config


def build(
    config: Config, folder: Path, source: Source, *, cache: Path, ranks: Ranks = ALONE
) -> tuple[Run, TrainState]:
    """A run with a new model and optimizer; tokenizer and shards are the run's own or new.

    Writes nothing but shards and baselines, to `cache`.
    """
    split = source.split
    log_line(
        f"corpus       {config.data.path}: {len(split.training):,} training documents, "
        f"{len(split.validation):,} held out"
    )
    log_line(f"leak check   {split.leak_check}")
    for label, note in split.notes.items():
        log_line(f"{label:<12} {note}")
    if config.sft.method != "none":
        check_tuning_is_shareable(config, ranks.size)
        run, state = build_tuned(config, folder, source, cache=cache)
        return replace(run, ranks=ranks), state
    device = select_device(config.train)
    tokenizer = _tokenizer(config, folder, split)
    if config.model.size == AUTO:
        data = _encode(config, split, tokenizer, cache=cache)
        config = choose_size(config, folder, tokenizer, data, device)
    config, compute = _with_batch_size(config, split, tokenizer, device, ranks)
    check_fits(config, vocab_size=tokenizer.vocab_size, device=device)
    data = _encode(config, split, tokenizer, cache=cache)
    release_freed_memory()  # what reading and encoding took
    for index in range(len(config.train.plan)):  # raises UserError for too little text
        batches_per_epoch(data.training, batch_plan(config, tokenizer, index))
    torch.manual_seed(config.train.seed)
    model = Model(config.model, vocab_size=tokenizer.vocab_size, backends=config.train.backend).to(
        device
    )
    optimizer = make_optimizer(model, config.train)
    reference = _reference(config, folder, tokenizer, device)
    run = Run(config, folder, tokenizer, data, model, optimizer, compute, reference=reference)
    return replace(run, ranks=ranks), TrainState()


def _reference(
    config: Config, folder: Path, tokenizer: Tokenizer, device: torch.device
) -> Model | None:
    """The model by whose losses the tokens to train are selected, or the teacher, or neither."""
    name = config.train.reference_run or config.train.teacher
    if not name:
        return None
    path = find_run(folder.parent, name)
    loaded = load_run(path, device=device)
    if loaded.tokenizer.fingerprint != tokenizer.fingerprint:
        again = command_line("train", run=path.name, init_from=folder.name)
        raise UserError(
            f"{'train.reference_run' if config.train.reference_run else 'train.teacher'}: the "
            f"tokenizer of {path} is not that of {folder}, so that their losses do not compare",
            f"A new run takes that of the other: choose another --run. Or train {path.name} with "
            f"this one: {again}",
        )
    return loaded.model.requires_grad_(False)


def _tokenizer(config: Config, folder: Path, split: Split) -> Tokenizer:
    """The run's own tokenizer, or that of the run it is initialised from, or a new one.

    Where tokens are selected by a reference, or learned from a teacher, it is theirs. A new one is
    trained on the training split alone.
    """
    own = folder / "tokenizer.json"
    if own.exists():
        return Tokenizer.load(own)
    if config.train.init_from:
        return Tokenizer.load(_source_run(folder, config) / "tokenizer.json")
    if name := config.train.reference_run or config.train.teacher:
        reference = find_run(folder.parent, name)
        return Tokenizer.load(reference / "tokenizer.json")
    log_line(f"tokenizer    training {config.tokenizer.kind} on the training documents")
    return train_tokenizer(
        Texts(in_hash_order(split.training), LEARNED_CHARS),
        kind=config.tokenizer.kind,
        vocab_size=config.tokenizer.vocab_size,
        control_tokens=config.tokenizer.control_tokens,
    )


def _source_run(folder: Path, config: Config) -> Path:
    return find_run(folder.parent, config.train.init_from)


def _with_batch_size(
    config: Config, split: Split, tokenizer: Tokenizer, device: torch.device, ranks: Ranks
) -> tuple[Config, Compute]:
    """Resolve `batch_size: auto`; dtype and backends are then chosen first, because memory depends.

    They are chosen at the default batch size. Several processes read as many rows each, and divide
    the memory of their machine.
    """
    if config.train.batch_size != "auto":
        return config, Compute(device)
    usual = replace(config.train, batch_size=TrainConfig().batch_size)
    model = Model(config.model, vocab_size=tokenizer.vocab_size, backends=config.train.backend)
    compute = select_backends(usual, model.to(device), Compute(device))
    compute = replace(compute, origin="chosen above, before the batch size")
    held_out = total_bytes(split.validation) + len(split.validation)  # tokens at most
    size = largest_batch_size(
        config,
        compute,
        vocab_size=tokenizer.vocab_size,
        validation_tokens=min(held_out, config.train.eval_tokens or held_out),
        processes=ranks.local_size,
    )
    size *= ranks.size
    log_line(f"batch size   {size}: the largest forecast to fit into memory")
    return replace(config, train=replace(config.train, batch_size=size)), compute


def _encode(config: Config, split: Split, tokenizer: Tokenizer, *, cache: Path) -> TrainingData:
    """Both sides of the split as shards, and what the loop needs to know about them."""
    validation, baselines = None, {}
    training = load_or_tokenize(split.training, tokenizer, cache_dir=cache, label="training")
    if split.validation:
        validation = load_or_tokenize(
            split.validation, tokenizer, cache_dir=cache, label="validation"
        )
        baselines = cached_baselines(split.training, split.validation, cache_dir=cache)
    prompt = first_prompt(split.validation or split.training) or ""
    return TrainingData(
        training,
        validation,
        has_records=has_prompts(split.training),
        sample_prompt=config.train.sample_prompt or prompt,
        baselines=baselines,
    )


def _restore_or_initialise(run: Run, state: TrainState, saved: Checkpoint | None) -> None:
    """Weights, moments and progress of the checkpoint; without one, weights of another run."""
    if saved is not None:
        restore_checkpoint(run, state, saved)
        log_line(f"resuming     from step {state.progress.step:,} of {run.total_steps:,}")
        return
    state.rollbacks = read_rollbacks(run.folder)
    if run.config.train.init_from and run.tuning is None:
        source = _source_run(run.folder, run.config)
        path = weights_file(source)
        before = load_config(source / "config.yaml").config.model
        is_whole = path.name == MODEL  # else an adapter, which is nothing without its base
        found = read_tensors(path) if is_whole else weights(load_run(source).model)
        tensors, new = fitted(run.model, found, before, source)
        load_weights(run.model, tensors, path)
        step = read_json(source / "config.json", needed=["step"])["step"]
        log_line(f"initialised  from the weights of {source}, step {step:,}")
        if new:
            log_line(
                f"grown        from {before.n_layers} blocks to {run.config.model.n_layers}: "
                f"{', '.join(map(str, new))} begin as identities"
            )
