"""Requests generated from the server's own description: no 500, no hang, errors that say why."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.served import Served

Schema = dict[str, Any]
NAMES = ("small", "second", "none")
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
texts = st.text(max_size=40) | st.sampled_from(["", "Who?", "<end>", "\0", "🙂" * 5, "a " * 300])


def values(schema: Schema, definitions: Schema, name: str = "") -> st.SearchStrategy[Any]:
    """What a schema allows; numbers within sizes that a test has time for."""
    if "$ref" in schema:
        return values(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return st.one_of(*(values(one, definitions, name) for one in schema["anyOf"]))
    if name == "model":
        return st.sampled_from(NAMES)
    match schema.get("type"):
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            most = min(schema.get("maximum", 40), 40)
            return st.integers(int(schema.get("minimum", 0)), int(most))
        case "number":
            return st.floats(schema.get("minimum", 0.05), schema.get("maximum", 2.0))
        case "string":
            return texts.filter(lambda text: len(text) >= schema.get("minLength", 0))
        case "array":
            items = values(schema.get("items", {}), definitions)
            most = min(schema.get("maxItems", 3), 4)
            return st.lists(items, min_size=min(schema.get("minItems", 0), 4), max_size=most)
        case "object":
            return objects(schema, definitions)
    return anything


def objects(schema: Schema, definitions: Schema) -> st.SearchStrategy[Any]:
    """Objects with some of the fields, now and then one of another type, or one that is unknown."""
    fields = {
        name: values(one, definitions, name) for name, one in schema.get("properties", {}).items()
    }
    required = {name: fields[name] for name in schema.get("required", [])}
    optional = {name: one for name, one in fields.items() if name not in required}
    right = st.fixed_dictionaries(required, optional=optional)
    if not fields:
        return right
    wrong = st.dictionaries(st.sampled_from([*fields, "unknown"]), anything, max_size=1)
    return st.tuples(right, st.one_of(st.just({}), st.just({}), wrong)).map(
        lambda pair: pair[0] | pair[1]
    )


@pytest.fixture(scope="module")
def description(server: Served) -> Schema:
    with server.client() as client:
        described: Schema = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    return described


def bounded(body: Any) -> Any:
    """The same request with few tokens."""
    if isinstance(body, dict) and isinstance(body.get("n"), int):
        body["n"] = min(body["n"], 3)
    return body


PATHS = (
    *("/api/generate", "/api/chat", "/api/show"),
    *("/v1/completions", "/v1/chat/completions", "/ys/generate"),
)


@pytest.mark.parametrize("n_requests", [12, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", PATHS)
def test_a_generated_request_is_answered_or_refused(
    client: httpx.Client, description: Schema, path: str, n_requests: int
) -> None:
    operation = description["paths"][path]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]

    @given(body=values(schema, description["components"]["schemas"]))
    @settings(
        max_examples=n_requests,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    def check(body: Any) -> None:
        data = json.dumps(bounded(body)).encode()
        answer = client.post(path, content=data, timeout=60)
        assert answer.status_code in (200, 400, 404), (body, answer.text)
        if answer.status_code != 200:
            assert answer.json()["error"]
        elif answer.headers["content-type"] == "application/json":
            answer.json()
        else:
            assert '"error"' not in answer.text

    check()


def test_every_described_request_exists(client: httpx.Client, description: Schema) -> None:
    for path, operations in description["paths"].items():
        for method in operations:
            answer = client.request(method, path.replace("{name}", "small"))
            assert answer.status_code == (200 if method == "get" else 400), path
    assert set(PATHS) == {path for path, one in description["paths"].items() if "post" in one}
