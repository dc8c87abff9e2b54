"""The server's description in OpenAPI 3.1, from the table of its routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from ys_llm import __version__
from ys_llm.serving.routes import RouteInfo

_REF = "#/components/schemas/{model}"
_PROBLEMS = {
    "400": "Something in the request is wrong or not supported; the error names it.",
    "401": "The API key is missing or wrong.",
    "403": "The request comes from a page of another origin.",
    "404": "There is no such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "503": "Too many requests wait, or the answer took too long.",
}


def openapi(routes: Sequence[RouteInfo], *, model_names: Sequence[str]) -> dict[str, Any]:
    """The description."""
    bodies = list(dict.fromkeys(route.body for route in routes if route.body))
    references, definitions = models_json_schema(
        [(body, "validation") for body in bodies], ref_template=_REF
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        reference = references[(route.body, "validation")] if route.body else None
        described = _operation(route, reference, model_names)
        paths.setdefault(route.path, {})[route.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "ys: small language models", "version": __version__},
        "paths": paths,
        "components": {"schemas": definitions.get("$defs", {})},
    }


def _operation(
    route: RouteInfo, reference: Any | None, model_names: Sequence[str]
) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if route.streams:
        content[route.streams] = {"schema": {"type": "string"}}
    problem = {"application/json": {"schema": {"type": "object"}}}
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": content}}
    for status, meaning in _PROBLEMS.items():
        responses[status] = {"description": meaning, "content": problem}
    operation: dict[str, Any] = {"summary": route.summary, "responses": responses}
    if reference is not None:
        schema = {"application/json": {"schema": reference}}
        operation["requestBody"] = {"required": True, "content": schema}
    if "{name}" in route.path:
        named = {"type": "string", "examples": list(model_names)}
        operation["parameters"] = [
            {"name": "name", "in": "path", "required": True, "schema": named}
        ]
    return operation
