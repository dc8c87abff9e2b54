"""Saved prompts on disk: exact for the model that wrote them, refused by every other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from support.hostile_contents import pickles
from support.prefixes import IDS, ROOMY, by_layers, loaded_run, model_of, same

from ys_llm.errors import UserError
from ys_llm.inference import prefix_file
from ys_llm.inference.generate import prefill, prefill_cached
from ys_llm.inference.prefix_cache import PrefixCache
from ys_llm.inference.prefix_file import (
    Fingerprint,
    fingerprint_of,
    load_cache,
    save_cache,
)
from ys_llm.model.language_model import Model
from ys_llm.model.quantize import quantize_linears

OWN = Fingerprint("m", "t", "s")


def written(model: Model, path: Path, lengths: tuple[int, ...] = (300, 70, 64, 5)) -> PrefixCache:
    cache = PrefixCache(ROOMY)
    for length in lengths:
        prefill_cached(model, IDS[:length], cache)
    save_cache(cache, path, OWN)
    return cache


def load(path: Path, model: Model, fingerprint: Fingerprint = OWN) -> PrefixCache:
    return load_cache(path, model, fingerprint, max_bytes=ROOMY)


def rewritten(path: Path, *, digest: bool = True, **changes: Any) -> None:
    """The file with other tensors (`None`: without) and a digest that is right again."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header |= changes.pop("header", {})
    for name, tensor in changes.items():
        tensors[name] = tensor
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if digest:
        header["digest"] = prefix_file.digest_of(tensors, header["entries"])
    path.write_bytes(safetensors.torch.save(tensors, header))


@by_layers
def test_a_file_gives_the_same_bits_in_the_same_order_of_use(
    layers: tuple[str, ...], tmp_path: Path
) -> None:
    model = model_of(layers)
    cache = written(model, tmp_path / "states")
    again = load(tmp_path / "states", model)
    assert [key for key, _ in again.items()] == [key for key, _ in cache.items()]
    assert again.n_bytes == cache.n_bytes
    for length, n_cached in ((300, 300), (310, 256), (70, 70), (64, 64), (5, 5), (6, 0)):
        found = prefill_cached(model, IDS[:length], again)
        assert same(found, prefill(model, IDS[:length]))
        assert found.n_cached == n_cached


def test_a_file_that_does_not_exist_is_an_empty_cache(tmp_path: Path) -> None:
    assert len(load(tmp_path / "states", model_of(("three_tier",)))) == 0
    with pytest.raises(UserError, match="there is no folder"):
        load(tmp_path / "missing" / "states", model_of(("three_tier",)))


def test_only_what_changed_needs_to_be_written(tmp_path: Path) -> None:
    model = model_of(("three_tier",))
    assert not written(model, tmp_path / "states").changed
    cache = load(tmp_path / "states", model)
    prefill_cached(model, IDS[:300], cache)
    assert not cache.changed
    prefill_cached(model, IDS[:301], cache)
    assert cache.changed


@pytest.mark.parametrize("field", ["model", "tokenizer", "software"])
def test_the_states_of_another_model_are_refused(tmp_path: Path, field: str) -> None:
    model = model_of(("three_tier",))
    written(model, tmp_path / "states")
    other = replace(OWN, **{field: "other"})
    with pytest.raises(UserError, match=f"another {field}") as raised:
        load(tmp_path / "states", model, other)
    assert "--cache" in raised.value.fix


def test_a_fingerprint_tells_weights_quantisation_and_options() -> None:
    def digest(change: Any = None, layers: tuple[str, ...] = ("three_tier",)) -> str:
        loaded = loaded_run(layers)
        if change is not None:
            with torch.no_grad():
                change(loaded.model)
        return fingerprint_of(loaded).model

    changes = [
        lambda model: model.embedding.weight[3, 5].add_(1e-6),
        lambda model: quantize_linears(model, "int8"),
        lambda model: quantize_linears(model, "bf16"),
        lambda model: model.double(),
    ]
    digests = [digest(), *map(digest, changes), digest(layers=("softmax_attention",))]
    assert len(set(digests)) == len(digests)
    assert digest() == digests[0]


def test_a_fingerprint_names_the_dtypes_and_the_backend_of_each_mixer() -> None:
    def software(change: Any = None) -> str:
        loaded = loaded_run(("softmax_attention", "three_tier"))
        if change is not None:
            change(loaded.model)
        return fingerprint_of(loaded).software

    def literal(model: Model) -> None:
        for mixer in model.mixers:
            mixer.backend = "reference"

    usual = software()
    assert usual.endswith(", float32, softmax_attention sdpa, three_tier auto")
    assert software() == usual
    assert software(literal).endswith(", softmax_attention reference, three_tier reference")
    assert ", float64, " in software(lambda model: model.double())
    assert "bfloat16" in software(lambda model: quantize_linears(model, "bf16"))


def test_a_file_larger_than_the_memory_is_refused_with_what_to_allow(tmp_path: Path) -> None:
    model = model_of(("three_tier",))
    big = tmp_path / "states"
    big.write_bytes(b"\0" * 3_100_000)
    with pytest.raises(UserError, match=r"--cache-mb 4"):
        load_cache(big, model, OWN, max_bytes=1_000_000)


def test_truncated_and_changed_files_are_refused(tmp_path: Path) -> None:
    model, path = model_of(("three_tier",)), tmp_path / "states"
    written(model, path)
    content = path.read_bytes()
    for end in (0, 1, 7, 8, 9, 200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match="not a whole file"):
            load(path, model)
    for position in range(0, len(content), len(content) // 37):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]
        )
        with pytest.raises(UserError, match=r"not a whole file|another"):
            load(path, model)


def test_foreign_files_are_refused_and_run_nothing(tmp_path: Path) -> None:
    model, path, marker = model_of(("three_tier",)), tmp_path / "states", tmp_path / "marker"
    foreign = {
        "a model": safetensors.torch.save({"0.x": torch.zeros(3)}, {"format": "pt"}),
        "a text": b"Once upon a time",
        **pickles(marker),
    }
    for content in foreign.values():
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a whole file") as raised:
            load(path, model)
        assert "\n" not in str(raised.value)
        assert path.read_bytes() == content
    assert not marker.exists()
    with pytest.raises(UserError, match="no file"):
        load(tmp_path, model)


HOSTILE: dict[str, dict[str, Any]] = {
    "no such tensor": {"0.extra": torch.zeros(1)},
    "a missing tensor": {"0.layers.0.keys": None},
    "a group of rubbish": {"rubbish": torch.zeros(1)},
    "another rank": {"0.layers.0.keys": torch.zeros(3)},
    "no rank": {"0.position_B": torch.tensor(5)},
    "more rows": {"0.layers.0.keys": torch.zeros(9, 256, 4, 8)},
    "another length": {"0.layers.0.keys": torch.zeros(1, 255, 4, 8)},
    "another width": {"0.layers.0.keys": torch.zeros(1, 256, 8, 4)},
    "another type": {"0.layers.0.keys": torch.zeros(1, 256, 4, 8, dtype=torch.float64)},
    "integers": {"0.layers.0.keys": torch.zeros(1, 256, 4, 8, dtype=torch.int32)},
    "no number": {"0.layers.0.keys": torch.full((1, 256, 4, 8), torch.nan)},
    "before the beginning": {"0.position_B": torch.tensor([-256])},
    "at the end of time": {"0.position_B": torch.tensor([2**63 - 1])},
    "another clock": {"0.position_B": torch.tensor([257])},
    "logits of another vocabulary": {"1.logits": torch.zeros(1, 7)},
    "logits that are no numbers": {"1.logits": torch.full((1, 60), torch.inf)},
    "no keys": {"header": {"entries": "[[]]"}},
    "keys of no group": {"header": {"entries": '[["00", 99, 0]]'}},
    "keys of no row": {"header": {"entries": '[["00", 0, 5000]]'}},
    "keys that are no bytes": {"header": {"entries": '[["x", 0, 0]]'}},
    "keys that are numbers": {"header": {"entries": "[[1, 0, 0]]"}},
    "entries of another kind": {"header": {"entries": '{"a": 1}'}},
    "no JSON": {"header": {"entries": "["}},
    "JSON without end": {"header": {"entries": "[" * 100_000}},
    "a later format": {"header": {"format": "ys prefix cache 2"}},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_hostile_contents_are_refused_in_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, path = model_of(("softmax_attention",)), tmp_path / "states"
    written(model, path, (300,))
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("0.layers.0.keys").shape == (1, 256, 4, 8)
        assert len(json.loads(file.metadata()["entries"])) == 2
    rewritten(path, **changes)
    with pytest.raises(UserError, match="not a whole file") as raised:
        load(path, model)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
    assert "--cache" in raised.value.fix


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = model_of(("three_tier",)), tmp_path / "states"
    cache = written(model, path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match="cannot be written"):
        save_cache(cache, path, OWN)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["states"]
