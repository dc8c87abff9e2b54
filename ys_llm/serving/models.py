"""The models that are served: found by name, loaded when asked for, unloaded when idle for long."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ys_llm.errors import UserError
from ys_llm.inference.generation import Event, Failed, Generation, GenerationRequest
from ys_llm.inference.scheduler import ClosedError, QueueFullError, Scheduler
from ys_llm.runs.folder import weights_file
from ys_llm.runs.model_files import LoadedRun, read_json
from ys_llm.serving.limits import ApiError, Limits, busy
from ys_llm.serving.metrics import Metrics, label

KEEP_ALIVE_SECONDS = 300.0
_FOR_EVER = float("inf")
_IDLE_CHECK_SECONDS = 1.0
Load = Callable[[Path], LoadedRun]


@dataclass(eq=False)
class ServedModel:
    """A run by the name that clients give it."""

    name: str
    path: Path
    scheduler: Scheduler | None = None
    expires_at: float = _FOR_EVER  # of time.time()
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    digest: str = ""
    identity: str = ""  # of the weights that are loaded: what its states belong to
    _digest_of: tuple[int, int] = (0, 0)  # size and time of the file that it is of

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return weights_file(self.path)

    @property
    def base(self) -> str:
        """The run that it was fine-tuned from; "" without one."""
        base = self.described().get("base")
        return str(base.get("run", "")) if isinstance(base, dict) else ""

    def described(self) -> dict[str, Any]:
        """Its config.json."""
        return read_json(self.path / "config.json")

    async def current_digest(self) -> str:
        """The SHA-256 of its weights, as they are now."""
        found = self.weights.stat()
        version = (found.st_size, found.st_mtime_ns)
        if version != self._digest_of:
            self.digest = await asyncio.to_thread(_sha256, self.weights)
            self._digest_of = version
        return self.digest


class Stream:
    """What happens to some generations, in groups of events that have come together."""

    def __init__(self) -> None:
        self.generations: list[Generation] = []
        self._events = asyncio.Queue[tuple[Generation, Event]]()

    def put(self, generation: Generation, event: Event) -> None:
        """Note that something has happened."""
        self._events.put_nowait((generation, event))

    async def next(self) -> list[tuple[int, Event]]:
        """What has happened since the last call, at least one event, each with its number.

        ApiError where a generation failed.
        """
        pairs = [await self._events.get()]
        while not self._events.empty():
            pairs.append(self._events.get_nowait())
        for _, event in pairs:
            if isinstance(event, Failed):
                raise _told(event.error)
        return [(self.generations.index(generation), event) for generation, event in pairs]


class Models:
    """All served models; everything here runs in the event loop's thread."""

    def __init__(
        self, runs: Mapping[str, Path], load: Load, limits: Limits, metrics: Metrics
    ) -> None:
        self.by_name = {name: ServedModel(name, path) for name, path in runs.items()}
        self._load, self._limits, self._metrics = load, limits, metrics
        self._streams: dict[Generation, Stream] = {}

    def __iter__(self) -> Iterator[ServedModel]:
        yield from self.by_name.values()

    def find(self, name: str) -> ServedModel:
        """The model of this name, which may end in ollama's `:latest`; a path is never a name.

        One that was fine-tuned may have that of its base before it, `base:tuned`.
        """
        found = self.by_name.get(name) or self.by_name.get(name.removesuffix(":latest"))
        base, _, tuned = name.partition(":")
        if found is None and tuned in self.by_name and self.by_name[tuned].base == base:
            return self.by_name[tuned]
        if found is None:
            raise ApiError(404, f"model {name[:100]!r} not found", param="model")
        return found

    async def ready(self, model: ServedModel) -> Scheduler:
        """The model, loaded if it is not."""
        async with model.loading:
            if model.scheduler is None:
                loop = asyncio.get_running_loop()
                try:
                    loaded = await asyncio.to_thread(self._load, model.path)
                except UserError as error:
                    raise ApiError(503, f"model {model.name!r} cannot be loaded: {error}") from None
                deliver = partial(self._deliver_soon, loop)
                cache_bytes = self._limits.cache_bytes
                model.identity = f"{model.name} {await model.current_digest()}"
                model.scheduler = Scheduler(loaded, deliver, cache_bytes=cache_bytes)
                self.keep_alive(model, KEEP_ALIVE_SECONDS)
            return model.scheduler

    def keep_alive(self, model: ServedModel, seconds: float) -> None:
        """Unload the model when it was idle for so long."""
        model.expires_at = time.time() + seconds

    def renew(self, model: ServedModel) -> None:
        """Unload the model no earlier than the usual time after this use."""
        model.expires_at = max(model.expires_at, time.time() + KEEP_ALIVE_SECONDS)

    async def unload(self, model: ServedModel) -> None:
        """Free its memory; answers that are not complete fail."""
        async with model.loading:
            if model.scheduler is not None:
                scheduler, model.scheduler = model.scheduler, None
                await asyncio.to_thread(scheduler.close)

    async def unload_idle(self) -> None:
        """Unload what has expired, for ever."""
        while True:
            await asyncio.sleep(_IDLE_CHECK_SECONDS)
            for model in self:
                is_idle = model.scheduler is not None and model.scheduler.is_idle
                if is_idle and model.expires_at <= time.time():
                    await self.unload(model)

    async def close(self) -> None:
        """Unload all."""
        for model in self:
            await self.unload(model)

    @contextmanager
    def generating(
        self, scheduler: Scheduler, requests: Iterable[GenerationRequest]
    ) -> Iterator[Stream]:
        """Generate until the context ends: what is then not complete, is given up."""
        stream = Stream()
        try:
            for request in requests:
                generation = scheduler.submit(request)
                stream.generations.append(generation)
                self._streams[generation] = stream
            yield stream
        except QueueFullError:
            raise busy() from None
        except ClosedError as error:
            raise _told(error) from None
        finally:
            for generation in stream.generations:
                generation.cancelled = True
                self._streams.pop(generation, None)
                self._metrics.forget(generation)

    def gauges(self) -> list[tuple[str, str, str, float]]:
        """Rows and queue of each model, for the metrics."""
        loaded = [(label(model.name), model.scheduler) for model in self if model.scheduler]
        rows, queue = ("ys_rows", "Answers in work."), ("ys_queue", "Requests that wait.")
        return [
            *((*rows, f"model={name}", scheduler.n_rows) for name, scheduler in loaded),
            *((*queue, f"model={name}", scheduler.n_waiting) for name, scheduler in loaded),
        ]

    def _deliver_soon(
        self, loop: asyncio.AbstractEventLoop, events: Sequence[tuple[Generation, Event]]
    ) -> None:
        """Called in a scheduler's thread."""
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: Sequence[tuple[Generation, Event]]) -> None:
        for generation, event in events:
            stream = self._streams.get(generation)
            if stream is not None:
                self._metrics.note(generation, event)
                stream.put(generation, event)


def _told(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return ApiError(503 if "damaged" in error.problem else 400, str(error))
    return ApiError(503, str(error)) if isinstance(error, ClosedError) else _failed(error)


def _failed(error: Exception) -> ApiError:
    return ApiError(500, f"the model failed: {type(error).__name__}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
