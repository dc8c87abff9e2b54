"""The published CPU recipe of nanoGPT on tinyshakespeare, in plain torch.

python -m benchmarks.nanogpt --data input.txt [--iterations 2000] [--minutes M]

Source: the README of github.com/karpathy/nanoGPT: a GPT-2 of 4 layers, 4 heads and width 128 over
64 characters, 12 rows a batch, 2,000 iterations without dropout; about three minutes on a laptop,
validation loss 1.88. With --minutes it trains once more, for as many iterations as fit, with the
schedule stretched over them. The validation loss is the mean over every window of the last tenth
of the text, where the source takes the mean of 20 random batches.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ys_llm.errors import EXIT_USAGE, UserError

LAYERS, HEADS, WIDTH, BLOCK, ROWS, ITERATIONS = 4, 4, 128, 64, 12, 2000
HIGHEST, LOWEST, WARMUP = 1e-3, 1e-4, 100  # learning rates, and iterations to the highest
_BURST = 50  # iterations that are timed to find how many fit into the minutes


class Result(NamedTuple):
    """What a training came to; seconds without the evaluation."""

    iterations: int
    seconds: float
    val_loss: float


class Layer(nn.Module):
    """x <- x + attention(LN x);  x <- x + MLP(LN x): pre-norm, GELU, no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.mixed = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        for layer in (self.qkv, self.up):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.mixed, self.down):  # both write to the residual stream
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * LAYERS))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """B x T x D to the same."""
        heads = self.qkv(self.norms[0](x_BTD)).unflatten(-1, (3, HEADS, -1))
        query, key, value = heads.transpose(1, 3).unbind(2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x_BTD = x_BTD + self.mixed(mixed.transpose(1, 2).flatten(2))
        y: Tensor = x_BTD + self.down(F.gelu(self.up(self.norms[1](x_BTD))))
        return y


class Gpt(nn.Module):
    """Characters and learned positions, layers, a last norm, a head that shares the embedding."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, WIDTH)
        self.position = nn.Embedding(BLOCK, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for table in (self.embedding, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The mean loss in nats."""
        x_BTD = self.embedding(tokens_BT) + self.position.weight[: tokens_BT.shape[1]]
        logits_BTV = F.linear(self.norm(self.layers(x_BTD)), self.embedding.weight)
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def main(words: Sequence[str]) -> int:
    """Train, and print speed and validation loss."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nanogpt")
    parser.add_argument("--data", type=Path, required=True, help="a text file")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, metavar="N")
    parser.add_argument("--minutes", type=float, default=0.0, metavar="M")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads (default: its own)")
    arguments = parser.parse_args(words)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        tokens, vocab_size = read(arguments.data)
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return error.exit_code
    show(train(tokens, vocab_size, arguments.iterations))
    if arguments.minutes:
        burst = train(tokens, vocab_size, _BURST)
        fitting = int(60 * arguments.minutes * _BURST / burst.seconds)
        show(train(tokens, vocab_size, fitting))
    return 0


def read(path: Path) -> tuple[Tensor, int]:
    """The characters of a file as numbers, and how many different ones there are."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--data {path}: {error}", "Name a text file in UTF-8", exit_code=EXIT_USAGE
        ) from error
    number = {character: n for n, character in enumerate(sorted(set(text)))}
    if len(text) < 20 * BLOCK:
        raise UserError(
            f"--data {path} has {len(text):,} characters, at least {20 * BLOCK:,} are needed",
            "Name a longer text",
            exit_code=EXIT_USAGE,
        )
    return torch.tensor([number[character] for character in text]), len(number)


def show(result: Result) -> None:
    """One line."""
    speed = result.iterations / result.seconds
    print(
        f"{result.iterations:,} iterations in {result.seconds:.1f} s: {speed:.1f} iterations/s, "
        f"{speed * ROWS * BLOCK:,.0f} characters/s; validation loss {result.val_loss:.4f}",
        flush=True,
    )


def train(tokens: Tensor, vocab_size: int, iterations: int) -> Result:
    """A model trained from random weights on the first nine tenths of the text."""
    torch.manual_seed(1337)
    border = int(0.9 * len(tokens))
    model = Gpt(vocab_size)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=HIGHEST, betas=(0.9, 0.99), fused=True)
    began = time.perf_counter()
    for iteration in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(iteration, iterations)
        begins = torch.randint(border - BLOCK, (ROWS, 1))
        rows = tokens[begins + torch.arange(BLOCK + 1)]
        model(rows[:, :-1], rows[:, 1:]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return Result(iterations, time.perf_counter() - began, mean_loss(model, tokens[border:]))


def learning_rate(iteration: int, iterations: int) -> float:
    """Linear to the highest, then half a cosine to the lowest at the last iteration."""
    warmup = min(WARMUP, iterations // 2)
    if iteration < warmup:
        return HIGHEST * (iteration + 1) / (warmup + 1)
    done = (iteration - warmup) / max(1, iterations - warmup)
    return LOWEST + 0.5 * (HIGHEST - LOWEST) * (1 + math.cos(math.pi * done))


@torch.no_grad()
def mean_loss(model: Gpt, tokens: Tensor) -> float:
    """Nats a character over every whole window of the text, side by side."""
    n_windows = (len(tokens) - 1) // BLOCK
    inputs = tokens[: n_windows * BLOCK].view(n_windows, BLOCK)
    targets = tokens[1 : n_windows * BLOCK + 1].view(n_windows, BLOCK)
    pairs = zip(inputs.split(256), targets.split(256), strict=True)
    return sum(float(model(x, y)) * len(x) for x, y in pairs) / n_windows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
