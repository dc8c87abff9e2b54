"""A sample of text from the weights as they are."""

from dataclasses import replace

from ys_llm.inference.generate import complete
from ys_llm.training.trainer import Run

SAMPLE_TOKENS = 60


def sample_text(run: Run, *, seed: int) -> str:
    """Text after the sample prompt; its own random generator leaves that of training alone."""
    pieces = complete(
        run.model,
        run.tokenizer,
        run.data.sample_prompt,
        sampling=replace(run.config.generate, max_tokens=SAMPLE_TOKENS, seed=seed),
        raw=not run.data.has_records,
        chats=run.config.sft.method != "none" and run.tokenizer.has_roles,
    )
    return "".join(pieces)
