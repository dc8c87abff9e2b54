"""The header of a training run, shown before the first step: what is trained, and on what."""

from collections import Counter
from collections.abc import Iterator

from ys_llm.data.document_rows import document_rows
from ys_llm.data.provenance import Provenance
from ys_llm.model.costs import flops_per_token, parameter_count, parameters_by_part, state_bytes
from ys_llm.training.trainer import Run, batches_of_epoch, is_padded


def header_lines(run: Run) -> Iterator[str]:
    """Tokenizer, data, baselines, model and cost, one line each."""
    config, model, data = run.config, run.model, run.data
    stage = config.train.plan[0]
    parts = ", ".join(f"{part} {n:,}" for part, n in parameters_by_part(model).items())
    held_out = data.validation.n_bytes if data.validation else 0
    yield f"tokenizer    {run.tokenizer.kind}, {run.tokenizer.vocab_size:,} tokens"
    yield (
        f"data         {data.training.n_inputs:,} training tokens "
        f"({data.training.n_bytes / 1e6:.1f} MB), {held_out / 1e6:.1f} MB held out"
    )
    yield from rows_lines(run)
    if data.baselines:
        yield f"baselines    {baseline_text(run)} (bits per byte of the held-out text)"
    mixers = ", ".join(config.model.layers)
    yield f"model        {mixers}, {parameter_count(model):,} parameters: {parts}"
    yield (
        f"cost         {flops_per_token(model, stage.seq_len) / 1e6:.1f} MFLOP forward per token, "
        f"{state_bytes(model, batch_size=1, seq_len=stage.seq_len):,} bytes of state per sequence"
    )


def rows_lines(run: Run) -> Iterator[str]:
    """What rows that begin at documents hold, for each sequence length; nothing for other rows."""
    config = run.config.data
    if is_padded(run):
        n, size = len(run.data.training.document_offsets), run.config.train.plan[0].batch_size
        yield f"rows         one example each, {n:,} of them, {size:,} a batch"
    if config.batching != "documents" or is_padded(run):
        return
    for seq_len in dict.fromkeys(stage.seq_len for stage in run.config.train.plan):
        shares = document_rows(run.data.training, seq_len, config.long_documents).shares()
        text = {
            "carry": f"all text is read, {shares.apart:.1%} of it in a later row than the "
            "beginning of its document, with the state",
            "cut": f"all text is read, {shares.apart:.1%} of it without the beginning of its "
            "document",
            "crop": f"an epoch leaves out {shares.unread:.1%} of the text, and "
            f"{shares.never:.1%} is never read",
        }[config.long_documents]
        rows = f"{shares.rows:,} of {seq_len:,} tokens, {shares.padding:.1%} padding"
        yield f"rows         {rows}; {text}"


def plan_line(run: Run) -> str:
    """The steps, once they are known, and the folder."""
    config, stage = run.config, run.config.train.plan[0]
    accumulated = config.train.grad_accum_steps
    epoch = batches_of_epoch(run) / accumulated
    return (
        f"plan         {run.total_steps:,} steps of "
        f"{stage.seq_len * stage.batch_size * accumulated:,} tokens, "
        f"{epoch:,.1f} steps per epoch; run folder {run.folder}"
    )


def baseline_text(run: Run) -> str:
    """The baselines in one phrase."""
    return ", ".join(f"{name} {value:.3f}" for name, value in run.data.baselines.items())


def writers_text(found: Provenance) -> str:
    """Records and kinds of each model or program that made the documents, most records first."""
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
