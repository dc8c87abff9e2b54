"""The whole model of a run, where several processes each have a part of it."""

import torch

from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import load_weights, weights
from ys_llm.training.ranks.shard import whole_tensors
from ys_llm.training.trainer import Run


def whole_model(run: Run) -> Model | None:
    """The model with all of its weights, in the first process; all come here."""
    if not run.is_sharded:
        return run.model if run.ranks.is_first else None
    tensors = whole_tensors(weights(run.model), run.ranks)
    if not run.ranks.is_first:
        return None
    with torch.random.fork_rng([]):  # its first weights, which it does not keep, are random
        model = Model(run.config.model, vocab_size=run.tokenizer.vocab_size)
    load_weights(model, tensors, run.folder)
    model.to(run.device).select_backends(
        batch_size=1,
        precision=run.compute.dtype or "fp32",
        previous=run.compute.backends,
        timed=False,
    )
    return model
