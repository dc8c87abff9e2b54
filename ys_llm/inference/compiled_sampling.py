"""The compiled draw (`csrc/sampling.cpp`): one call draws a token for every row of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ys_llm.config.schema import GenerateConfig
from ys_llm.csrc.loader import Library

PENALTY_WINDOW = 64  # recent tokens that the repetition penalty applies to, as in csrc/api.h
NOT_FINITE = -1  # the id of a row with a logit that is NaN or infinite


def draw_rows(
    library: Library,
    logits_NV: Tensor,
    sampling: GenerateConfig,
    recents: Sequence[Iterable[int]],
    uniforms: Sequence[float],
) -> list[tuple[int, float]]:
    """Id and log-probability of the token that each row's uniform number draws, see `sampling`.

    `recents` are the ids, at most PENALTY_WINDOW a row, that the repetition penalty applies to.
    """
    new, (n, vocab_size) = library.ffi.new, logits_NV.shape
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    logits_NV = logits_NV.detach().to("cpu", dtype).contiguous()
    options = new(
        "struct ys_sampling *",
        (
            sampling.temperature,
            sampling.top_p,
            sampling.min_p,
            sampling.repetition_penalty,
            min(sampling.top_k, vocab_size),
        ),
    )
    recent, n_recent = new("int64_t[]", n * PENALTY_WINDOW), new("int64_t[]", n)
    if sampling.repetition_penalty != 1:
        for row, of_row in enumerate(map(list, recents)):
            n_recent[row] = len(of_row)
            recent[row * PENALTY_WINDOW : row * PENALTY_WINDOW + len(of_row)] = of_row
    ids, logprobs = new("int64_t[]", n), new("double[]", n)
    kernel = library.lib.ys_sample_d if dtype == torch.float64 else library.lib.ys_sample_f
    kernel(
        *(options, n, vocab_size, library.pointer(logits_NV), recent, n_recent),
        *(new("double[]", uniforms), ids, logprobs, torch.get_num_threads()),
    )
    return list(zip(library.ffi.unpack(ids, n), library.ffi.unpack(logprobs, n), strict=True))
