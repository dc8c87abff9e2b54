"""From a request to the text of its answer, for all APIs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from ys_llm.inference.generation import (
    Drawn,
    Event,
    Finished,
    GenerationRequest,
    PromptRead,
)
from ys_llm.serving.limits import Limits
from ys_llm.serving.models import Models, ServedModel
from ys_llm.serving.states import KeptStates


@dataclass(frozen=True)
class Services:
    """What the handlers of every API use."""

    models: Models
    states: KeptStates
    limits: Limits


@dataclass
class Whole:
    """An answer that is collected to be sent in one piece."""

    read: PromptRead | None = None
    finished: Finished | None = None
    texts: list[str] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)

    def note(self, event: Event) -> None:
        """Add what has happened."""
        if isinstance(event, PromptRead):
            self.read = event
        elif isinstance(event, Drawn):
            self.drawn.append(event)
            self.texts.append(event.text)
        elif isinstance(event, Finished):
            self.finished = event
            self.texts.append(event.text)

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self.texts)


class Answering:
    """The answers to some requests on one model, as they are generated."""

    def __init__(
        self, services: Services, model: ServedModel, requests: Sequence[GenerationRequest]
    ) -> None:
        self._models, self.model, self._requests = services.models, model, requests

    async def groups(self) -> AsyncGenerator[list[tuple[int, Event]]]:
        """What happens to the answers, with their numbers, until all are finished."""
        scheduler = await self._models.ready(self.model)
        n_unfinished = len(self._requests)
        with self._models.generating(scheduler, self._requests) as stream:
            while n_unfinished:
                group = await stream.next()
                n_unfinished -= sum(isinstance(event, Finished) for _, event in group)
                yield group
        self._models.renew(self.model)

    async def wholes(self) -> list[Whole]:
        """The complete answers."""
        wholes = [Whole() for _ in self._requests]
        async for group in self.groups():
            for number, event in group:
                wholes[number].note(event)
        return wholes
