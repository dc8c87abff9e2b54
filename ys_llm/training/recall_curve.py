"""The loss on names while a model is trained: on a small part of the held-out text."""

import numpy as np

from ys_llm.data.words import CommonWords
from ys_llm.evaluation.mentions import documents_of, find_mentions
from ys_llm.evaluation.token_losses import losses_of_documents
from ys_llm.model.language_model import Model
from ys_llm.runs.folder import COMMON_WORDS
from ys_llm.training.trainer import Run

CURVE_TOKENS = 10_000  # a fifth of what an evaluation reads by default in the quickstart
_DOCUMENT_TOKENS = 2048  # a longer document is read up to here: alone it would be slow


def names_again(run: Run, model: Model) -> dict[str, float]:
    """`val_names_again_loss` of a model of the run: nats per token of names that come again.

    Empty where the held-out text has no such names, and of a run that is fine-tuned. See
    `evaluation/recall.py`; here only the first documents with at most CURVE_TOKENS tokens are read.
    """
    common = CommonWords.load(run.folder / COMMON_WORDS)
    if common is None or run.data.validation is None or run.tuning is not None:
        return {}
    documents = documents_of(run.data.validation, max_tokens=CURVE_TOKENS)
    documents = [ids[:_DOCUMENT_TOKENS] for ids in documents]
    again = [m for m in find_mentions(documents, run.tokenizer, common) if m.is_name and m.distance]
    if not again:
        return {}
    losses = losses_of_documents(model, documents, first_id=run.tokenizer.end_id)
    nats = np.concatenate([losses[m.document][m.first : m.last + 1] for m in again])
    return {"val_names_again_loss": float(nats.mean())}
