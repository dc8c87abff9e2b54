"""A loaded run that answers prompts, and the one format of an answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ys_llm.config.schema import GenerateConfig
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.inference.copied import Copied
from ys_llm.inference.decoder import decoder_of
from ys_llm.inference.generate import (
    Prefilled,
    copied_from,
    generate,
    generate_batch,
    prefill,
    prefill_cached,
    prompt_ids,
)
from ys_llm.inference.prefix_cache import PrefixCache
from ys_llm.inference.sampling import ScoredToken
from ys_llm.runs.model_files import LoadedRun

_LED_TO = 4  # tokens that are shown before one that was copied


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its text and log-probability (nats); `top`: the most probable ones, on request.

    The first token of a prompt has no log-probability: nothing comes before it. `copied` is what
    the copy tier gave to the probability, None without one.
    """

    id: int
    text: str
    logprob: float | None
    top: tuple[TokenLogprob, ...] = ()
    copied: CopiedText | None = None

    def to_json(self) -> dict[str, Any]:
        """The token as JSON; `top` and `copied` only where there is one."""
        described: dict[str, Any] = {"id": self.id, "text": self.text, "logprob": self.logprob}
        if self.top:
            described["top"] = [candidate.to_json() for candidate in self.top]
        if self.copied is not None:
            described["copied"] = asdict(self.copied)
        return described


@dataclass(frozen=True)
class SourceText:
    """A token that was copied: position, share of the probability, and text with what led to it.

    Where the position is not known, see `copied.Source`, the text is empty.
    """

    position: int | None
    share: float
    text: str


@dataclass(frozen=True)
class CopiedText:
    """The share of a token's probability that was copied, 0 to 1, and its largest sources."""

    share: float
    sources: tuple[SourceText, ...]


@dataclass(frozen=True)
class Answer:
    """One prompt and the model's answer: what `--json` and each line of `--prompts` print.

    `ids` are the tokens of the answer, the last one `<end>` where `finish_reason` is "stop";
    "length" means that the limit of tokens was reached. `seed` reproduces the answer.
    `prompt_tokens` include what the format adds (`<end>`, `<start>`). In a batch, `answer_seconds`
    is the time until this answer was complete, in which others were generated too. The state after
    `cached_tokens` of the prompt was saved, so that these were not read again.
    """

    run: str
    step: int
    seed: int
    prompt: str
    text: str
    ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    answer_tokens: int
    prompt_seconds: float
    answer_seconds: float
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    answer_logprobs: tuple[TokenLogprob, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """One flat object; `logprobs: {prompt: [...], answer: [...]}` only on request.

        Without the seconds and what came from a cache, so that the same command prints the same
        bytes.
        """
        described = {
            "run": self.run,
            "step": self.step,
            "seed": self.seed,
            "prompt": self.prompt,
            "text": self.text,
            "ids": list(self.ids),
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
        }
        if self.prompt_logprobs is not None and self.answer_logprobs is not None:
            described["logprobs"] = {
                "prompt": [token.to_json() for token in self.prompt_logprobs],
                "answer": [token.to_json() for token in self.answer_logprobs],
            }
        return described


@dataclass
class _Reading:
    """A prompt that was read: its text, and how long that took."""

    prompt: str
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    finished_reading: float


class Engine:
    """A loaded run with its compiled decoder, which is built once, from the weights as they are.

    `raw` continues the prompt as a text instead of answering it; so does a run without prompts in
    its training data. A prompt that begins as one in `cache` does starts from its state.
    """

    def __init__(self, loaded: LoadedRun, cache: PrefixCache | None = None) -> None:
        self.loaded, self.cache, self._cache_of_base = loaded, cache, cache
        self.decoder = decoder_of(loaded.model)

    def weights_changed(self, *, is_base: bool) -> None:
        """Compute with the weights as they are now; states that others have left are not used."""
        kept = self._cache_of_base
        self.cache = kept if is_base or kept is None else PrefixCache(kept.max_bytes)
        self.decoder = decoder_of(self.loaded.model)

    def read(self, pieces: Iterable[str], *, raw: bool) -> Prefilled:
        """Read a prompt that comes in pieces, in memory that does not grow with its length."""
        model, ids = self.loaded.model, self._ids(pieces, raw=raw)
        if self.cache is None:
            return prefill(model, ids, decoder=self.decoder)
        return prefill_cached(model, ids, self.cache, decoder=self.decoder)

    def generate(self, prefilled: Prefilled, sampling: GenerateConfig) -> Iterator[ScoredToken]:
        """The tokens of the answer, as they are drawn."""
        return generate(
            self.loaded.model,
            prefilled,
            sampling=sampling,
            end_ids=self.loaded.end_ids,
            decoder=self.decoder,
        )

    def answer(
        self,
        prompt: str,
        sampling: GenerateConfig,
        *,
        raw: bool = False,
        logprobs: int | None = None,
    ) -> Answer:
        """Answer one prompt; with `logprobs` each token is scored, with that many alternatives."""
        sampling, tokenizer, model = seeded(sampling), self.loaded.tokenizer, self.loaded.model
        began, n_candidates, scored = time.perf_counter(), logprobs or 0, list[ScoredToken]()
        ids: list[int] = []
        if logprobs is None:
            prefilled = self.read([prompt], raw=raw)
        else:  # every token of the prompt is read, to be scored
            ids += self._ids([prompt], raw=raw)
            prefilled = prefill(model, ids, observe=scored.append, n_candidates=n_candidates)
        finished_reading = time.perf_counter()
        tokens = list(
            generate(
                model,
                prefilled,
                sampling=sampling,
                end_ids=self.loaded.end_ids,
                n_candidates=n_candidates,
                decoder=self.decoder,
            )
        )
        reading = _reading(prompt, prefilled, began, finished_reading)
        answer = self._answer(reading, tokens, sampling)
        if logprobs is None:
            return answer
        if copied := copied_from(model, ids, answer.ids):
            pairs = zip(tokens, copied, strict=True)
            tokens = [replace(token, copied=of_token) for token, of_token in pairs]
        text = _Text(tokenizer, [*ids, *answer.ids])
        first = TokenLogprob(tokenizer.end_id, tokenizer.token_text(tokenizer.end_id), None)
        return replace(
            answer,
            prompt_logprobs=(first, *map(text.logprob, scored)),
            answer_logprobs=tuple(map(text.logprob, tokens)),
        )

    def copied(
        self, prompt: str, answer: Sequence[int], *, raw: bool = False
    ) -> list[tuple[str, CopiedText]]:
        """Each token of an answer with what of its probability was copied; empty: no copy tier."""
        ids = [*self._ids([prompt], raw=raw)]
        text = _Text(self.loaded.tokenizer, [*ids, *answer])
        found = copied_from(self.loaded.model, ids, answer)
        token_text = self.loaded.tokenizer.token_text
        return [(token_text(id), text.copied(one)) for id, one in zip(answer, found, strict=False)]

    def answer_batch(
        self,
        prompts: Iterable[str],
        sampling: GenerateConfig,
        *,
        raw: bool = False,
        max_batch: int = 16,
    ) -> Iterator[Answer]:
        """Answer prompts, up to `max_batch` together, in their order; all with the same seed."""
        sampling, readings = seeded(sampling), dict[int, _Reading]()

        def read_all() -> Iterator[Prefilled]:
            """Read each prompt when its turn comes, and note how long that took."""
            for number, prompt in enumerate(prompts):
                began = time.perf_counter()
                prefilled = self.read([prompt], raw=raw)
                readings[number] = _reading(prompt, prefilled, began, time.perf_counter())
                yield prefilled

        done: dict[int, Answer] = {}
        next_number = 0
        for number, tokens in generate_batch(
            self.loaded.model,
            read_all(),
            sampling=sampling,
            end_ids=self.loaded.end_ids,
            max_batch=max_batch,
            decoder=self.decoder,
        ):
            done[number] = self._answer(readings.pop(number), tokens, sampling)
            while next_number in done:
                yield done.pop(next_number)
                next_number += 1

    def _ids(self, pieces: Iterable[str], *, raw: bool) -> Iterator[int]:
        raw = raw or not self.loaded.has_records
        return prompt_ids(self.loaded.tokenizer, pieces, raw=raw, chats=self.loaded.chats)

    def _answer(
        self, reading: _Reading, tokens: Sequence[ScoredToken], sampling: GenerateConfig
    ) -> Answer:
        ids, tokenizer = tuple(token.id for token in tokens), self.loaded.tokenizer
        assert sampling.seed is not None  # see `seeded`
        return Answer(
            run=self.loaded.config.run,
            step=self.loaded.step,
            seed=sampling.seed,
            prompt=reading.prompt,
            text=tokenizer.decode(ids),
            ids=ids,
            finish_reason="stop" if ids and ids[-1] in self.loaded.end_ids else "length",
            prompt_tokens=reading.prompt_tokens,
            answer_tokens=len(ids),
            prompt_seconds=reading.seconds,
            answer_seconds=time.perf_counter() - reading.finished_reading,
            cached_tokens=reading.cached_tokens,
        )


class _Text:
    """The tokens of a prompt and its answer, to show what was copied."""

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
        self._tokenizer, self._ids = tokenizer, ids

    def logprob(self, token: ScoredToken) -> TokenLogprob:
        """The token with its text."""
        text = self._tokenizer.token_text
        top = tuple(TokenLogprob(c.id, text(c.id), c.logprob) for c in token.candidates)
        copied = None if token.copied is None else self.copied(token.copied)
        return TokenLogprob(token.id, text(token.id), token.logprob, top, copied)

    def copied(self, copied: Copied) -> CopiedText:
        """The sources with their texts."""
        return CopiedText(
            copied.share,
            tuple(
                SourceText(source.position, source.share, self._until(source.position))
                for source in copied.sources
            ),
        )

    def _until(self, position: int | None) -> str:
        if position is None:
            return ""
        shown = self._ids[max(0, position - _LED_TO) : position + 1]
        return "".join(map(self._tokenizer.token_text, shown))


def _reading(prompt: str, read: Prefilled, began: float, ended: float) -> _Reading:
    return _Reading(prompt, read.n_tokens, read.n_cached, ended - began, ended)


def seeded(sampling: GenerateConfig) -> GenerateConfig:
    """The settings with a seed, drawn here where there is none, so that an answer can report it."""
    if sampling.seed is not None:
        return sampling
    return replace(sampling, seed=secrets.randbelow(1 << 31))
