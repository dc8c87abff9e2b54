"""What a model card claims, in the form that hubs read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from ys_llm.config.sources import load_config
from ys_llm.runs.card import model_card

BY_PROGRAM = {"kind": "tales", "recipe": "a1", "model": "", "model_digest": "", "records": 3}
BY_MODEL = {**BY_PROGRAM, "model": "llama3.1"}
UNKNOWN = {**BY_PROGRAM, "kind": ""}


def front_matter(sources: Sequence[dict[str, Any]], *changes: str) -> dict[str, Any]:
    config = load_config(None, overrides=["data.path=my texts", *changes]).config
    described = {"parameters": 5, "step": 2, "tokens": 9, "val_bits_per_byte": 0.25}
    card = model_card(config, {**described, "sources": list(sources)})
    opening, head, body = card.split("---\n", 2)
    assert opening == "" and body.startswith("\n# default\n")
    found: dict[str, Any] = yaml.safe_load(head)
    return found


def test_the_card_begins_with_what_hubs_read() -> None:
    found = front_matter([BY_PROGRAM], "train.init_from='other: one'")
    assert (found["license"], found["language"], found["library_name"]) == ("mit", ["en"], "ys-llm")
    assert found["datasets"] == ["my-texts"]
    assert found["base_model"] == "other: one"
    assert found["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.25
    assert "text-generation" in found["tags"]


def test_licence_and_language_are_claimed_only_for_text_that_programs_wrote() -> None:
    for sources in ([], [BY_PROGRAM, BY_MODEL], [BY_PROGRAM, UNKNOWN]):
        found = front_matter(sources)
        assert (found["license"], found["language"]) == ("unknown", ["und"])
