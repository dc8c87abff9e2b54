"""ollama's protocol: what it tells of the models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ys_llm import __version__
from ys_llm.model.costs import state_bytes
from ys_llm.serving.answering import Services
from ys_llm.serving.bodies import parse
from ys_llm.serving.exchange import Exchange
from ys_llm.serving.limits import ApiError
from ys_llm.serving.models import ServedModel
from ys_llm.serving.ollama_bodies import ShowBody

CONTEXT_LENGTH = 1 << 30  # ollama wants a number; a state reads on for ever
_LAST_MOMENT = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
_CHAT_TEMPLATE = (
    "<end>{{ if .System }}<system>{{ .System }}{{ end }}"
    "<user>{{ .Prompt }}<assistant>{{ .Response }}<end>"
)
_TEMPLATE = "{{ .Prompt }}<start>{{ .Response }}<end>"


class OllamaModels:
    """Handlers of the requests that describe."""

    def __init__(self, services: Services) -> None:
        self._models = services.models

    async def version(self, exchange: Exchange) -> None:
        """GET /api/version."""
        await exchange.send_json({"version": __version__})

    async def tags(self, exchange: Exchange) -> None:
        """GET /api/tags."""
        await exchange.send_json({"models": [await _listed(model) for model in self._models]})

    async def loaded(self, exchange: Exchange) -> None:
        """GET /api/ps."""
        models = []
        for model in self._models:
            if model.scheduler is not None:
                expires_at = min(model.expires_at, _LAST_MOMENT)
                models.append(
                    await _listed(model)
                    | {
                        "expires_at": _time(expires_at),
                        "size_vram": 0,
                        "context_length": CONTEXT_LENGTH,
                    }
                )
        await exchange.send_json({"models": models})

    async def show(self, exchange: Exchange) -> None:
        """POST /api/show."""
        body = parse(ShowBody, exchange.body)
        name = body.model or body.name
        if not name:
            raise ApiError(400, "model is required", param="model")
        model = self._models.find(name)
        scheduler = await self._models.ready(model)
        generate = scheduler.loaded.config.generate
        described = model.described()
        parameters = {
            "temperature": generate.temperature,
            "top_k": generate.top_k,
            "top_p": generate.top_p,
            "min_p": generate.min_p,
            "repeat_penalty": generate.repetition_penalty,
            "num_predict": generate.max_tokens,
        }
        lines = [f"{key:<30} {value}" for key, value in parameters.items()]
        template = _TEMPLATE if described["has_records"] else "{{ .Prompt }}"
        template = _CHAT_TEMPLATE if scheduler.loaded.chats else template
        modelfile = [f"FROM {model.name}", f"TEMPLATE {template}"]
        await exchange.send_json(
            {
                "modelfile": "\n".join(
                    [*modelfile, *(f"PARAMETER {key} {parameters[key]}" for key in parameters)]
                ),
                "parameters": "\n".join(lines),
                "template": template,
                "details": _details(described),
                "model_info": _model_info(described)
                | {"ys.state_bytes": state_bytes(scheduler.loaded.model, batch_size=1, seq_len=1)},
                "capabilities": ["completion"],
                "modified_at": _time(model.weights.stat().st_mtime),
            }
        )

    async def refuse(self, exchange: Exchange) -> None:
        """What ollama has and this server does not."""
        path = exchange.scope["path"]
        raise ApiError(400, f"{path} is not supported: models are not made over HTTP")


async def _listed(model: ServedModel) -> dict[str, Any]:
    found, name = model.weights.stat(), f"{model.name}:latest"
    return {
        "name": name,
        "model": name,
        "modified_at": _time(found.st_mtime),
        "size": found.st_size,
        "digest": await model.current_digest(),
        "details": _details(model.described()),
    }


def _details(described: dict[str, Any]) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": "ys",
        "families": ["ys"],
        "parameter_size": short_count(int(described.get("parameters", 0))),
        "quantization_level": "F32",
    }


def _model_info(described: dict[str, Any]) -> dict[str, Any]:
    return {
        "general.architecture": "ys",
        "general.parameter_count": int(described.get("parameters", 0)),
        "ys.context_length": CONTEXT_LENGTH,
        "ys.embedding_length": described["d_model"],
        "ys.block_count": described["n_layers"],
        "ys.vocab_size": described["vocab_size"],
        "ys.training_step": described["step"],
    }


def short_count(count: int) -> str:
    """A count as ollama writes it: 2.5M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
