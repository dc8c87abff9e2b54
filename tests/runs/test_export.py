"""What an export writes and refuses, and that its files alone give the model's logits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.exports import TEXTS, shaken, small

from ys_llm.config.schema import Config
from ys_llm.config.shipped import shipped_folder
from ys_llm.config.sources import load_config
from ys_llm.data.case_markers import decode_case, encode_case
from ys_llm.data.fast_tokenizer import fast_tokenizer
from ys_llm.data.tokenizer import Tokenizer, train_tokenizer
from ys_llm.errors import UserError
from ys_llm.mixers import exported as mixers
from ys_llm.runs import export
from ys_llm.runs.export import export_run, flattened, largest_difference, network_of
from ys_llm.runs.model_files import LoadedRun

REFUSED = ("yoco",)  # no export has a global cache
SHIPPED = sorted({path.stem for path in shipped_folder().glob("*.yaml")} - {*REFUSED})


@pytest.mark.parametrize("name", SHIPPED)
def test_the_exported_form_of_every_shipped_model_has_its_logits(name: str) -> None:
    config = load_config(shipped_folder() / f"{name}.yaml").config
    if missing := set(config.model.layers) - set(mixers.MIXERS):
        pytest.skip(f"no twin of {missing}")
    model = shaken(small(config))
    assert largest_difference(model) < 1e-9


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_with_a_part_that_no_export_has_is_refused(name: str) -> None:
    model = shaken(small(load_config(shipped_folder() / f"{name}.yaml").config))
    with pytest.raises(UserError, match="an export knows no cross_decoder"):
        network_of(model)


def test_shared_layers_a_channel_mix_and_further_heads_have_the_same_logits() -> None:
    config = small(load_config(shipped_folder() / "default.yaml").config)
    parts = {"mlp": "channel_mix", "layer_order": (0, 1, 1, 0), "prediction_heads": 3}
    model = shaken(replace(config, model=replace(config.model, n_layers=2, **parts)))
    assert largest_difference(model) < 1e-9


@pytest.mark.parametrize("gate", ["sentinel", "separate"])
def test_a_copy_tier_has_the_same_logits_past_its_window(gate: Any) -> None:
    config = Config()
    copying = replace(config.model.copy, window=12, width=8, gate=gate)
    narrow = replace(small(config).model, copy=copying, convolution=3, layers=("min_gru",))
    model = shaken(replace(config, model=replace(narrow, options={})))
    assert largest_difference(model) < 1e-9


def test_rows_that_have_read_different_lengths_go_on_together() -> None:
    model = shaken(small(load_config(shipped_folder() / "quickstart.yaml").config))
    net, tokens = network_of(model), torch.randint(300, (2, 40))
    with torch.no_grad():
        alone = [net(tokens[row : row + 1, : 20 + row])[1] for row in range(2)]
        together = {name: torch.cat([one[name] for one in alone]) for name in alone[0]}
        found, _ = net(tokens[:, 30:], together)
        for row in range(2):
            expected, _ = net(tokens[row : row + 1, 30:], alone[row])
            torch.testing.assert_close(found[row : row + 1], expected)


@pytest.fixture(scope="module")
def joiners() -> Tokenizer:
    return train_tokenizer([*TEXTS, *TEXTS], kind="bpe_joiner", vocab_size=400)


@pytest.fixture(scope="module")
def by_kind(joiners: Tokenizer) -> dict[str, Tokenizer]:
    kinds: Sequence[Any] = ("bpe", "chars", "bytes")
    rest = {kind: train_tokenizer(TEXTS * 2, kind=kind, vocab_size=400) for kind in kinds}
    return {**rest, "bpe_joiner": joiners}


@pytest.mark.parametrize("kind", ["bpe", "bpe_joiner", "chars", "bytes"])
def test_a_fast_tokenizer_gives_the_same_ids_and_the_text_back(
    kind: str, by_kind: dict[str, Tokenizer]
) -> None:
    own = by_kind[kind]
    fast = tokenizers.Tokenizer.from_str(fast_tokenizer(own))
    for text in TEXTS:
        ids = fast.encode(text, add_special_tokens=False).ids
        assert ids == own.encode(text)
        assert fast.decode(ids) == text


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="aZé' \n\"“(1.\x10\x11PQ", max_size=30))
def test_joiners_are_written_and_removed_by_the_library_as_by_ys(text: str) -> None:
    own = train_tokenizer(["the fox"], kind="bpe_joiner", vocab_size=300)
    fast = tokenizers.Tokenizer.from_str(fast_tokenizer(own))
    ids = fast.encode(text, add_special_tokens=False).ids
    assert ids == own.encode(text)
    assert fast.decode(ids) == text


def test_control_tokens_are_read_in_a_text_and_put_around_it(joiners: Tokenizer) -> None:
    fast = tokenizers.Tokenizer.from_str(fast_tokenizer(joiners))
    prompt, answer = joiners.encode("A fox?"), joiners.encode("Yes")
    expected = [0, *prompt, 1, *answer]
    assert fast.encode("A fox?", "Yes").ids == expected
    assert fast.encode("A fox?<start>Yes<end>").ids == [*expected, 0]
    assert fast.decode(expected) == "A fox?Yes"


def test_a_tokenizer_of_words_reads_text_with_case_markers() -> None:
    own = train_tokenizer(TEXTS, kind="words", vocab_size=300)
    fast = tokenizers.Tokenizer.from_str(fast_tokenizer(own))
    for text in TEXTS:
        ids = fast.encode(encode_case(text), add_special_tokens=False).ids
        assert ids == own.encode(text)
        assert decode_case(fast.decode(ids)) == text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, joiners: Tokenizer) -> LoadedRun:
    config = small(load_config(shipped_folder() / "quickstart.yaml").config)
    model = shaken(config, joiners.vocab_size)
    folder = tmp_path_factory.mktemp("runs") / "mine"
    folder.mkdir()
    (folder / "README.md").write_text("# mine\n", encoding="utf-8")
    return LoadedRun(folder, config, model, joiners, 7, True)


@pytest.fixture(scope="module")
def hf(run: LoadedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "hf"
    export_run(run, "hf", folder)
    return folder


def test_an_export_for_transformers_is_complete(hf: Path, run: LoadedRun) -> None:
    assert {path.name for path in hf.iterdir()} == {
        "README.md",
        "config.json",
        "case_markers_ys.py",
        "configuration_ys.py",
        "generation_config.json",
        *(f"mixer_{name}.py" for name in mixers.MIXERS),
        "marking_ys.py",
        "mixers_ys.py",
        "model.safetensors",
        "modeling_ys.py",
        "network_ys.py",
        "ops_ys.py",
        "tokenization_ys.py",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert json.loads((hf / "generation_config.json").read_text())["eos_token_id"] == 0
    assert (hf / "README.md").read_text() == "# mine\n"
    assert not [path for path in hf.parent.iterdir() if path != hf]


def test_the_files_need_no_ys(hf: Path) -> None:
    code = "".join(path.read_text() for path in hf.glob("*.py"))
    assert "import ys_llm" not in code
    assert "from ys_llm" not in code


LOADED = """
import json, sys, torch
from safetensors.torch import load_file, save_file
from exported.mixers_ys import MIXERS
from exported.network_ys import Network
config = json.load(open("exported/config.json"))
network = Network(config["network"], MIXERS)
tensors = load_file("exported/model.safetensors")
network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items()})
assert "ys_llm" not in sys.modules
logits = network.eval()(torch.arange(20)[None])[0].detach()
save_file({"logits": logits}, "logits.safetensors")
"""


def test_the_files_alone_give_the_logits_of_the_model(
    hf: Path, run: LoadedRun, tmp_path: Path
) -> None:
    (tmp_path / "exported").symlink_to(hf)
    subprocess.run([sys.executable, "-c", LOADED], cwd=tmp_path, check=True, timeout=60)
    with torch.no_grad():
        expected, _ = run.model(torch.arange(20)[None])
    found = load_file(tmp_path / "logits.safetensors")["logits"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_folder_that_is_not_empty_is_left_alone(run: LoadedRun, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    for taken in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UserError, match="exists already"):
            export_run(run, "hf", taken)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]


def test_an_export_into_an_empty_folder_is_made(run: LoadedRun, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    done = export_run(run, "hf", tmp_path / "new")
    assert done.bytes == sum(path.stat().st_size for path in (tmp_path / "new").iterdir())
    assert done.difference < 1e-9


def test_nothing_is_left_of_an_export_that_fails(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "write_synced", full)
    with pytest.raises(OSError, match="No space"):
        export_run(run, "hf", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_model_that_would_be_another_is_not_exported(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(UserError, match="would differ"):
        export_run(run, "hf", tmp_path / "new")


def test_a_model_with_weights_of_another_kind_is_refused() -> None:
    model = shaken(small(load_config(shipped_folder() / "min_gru.yaml").config))
    model.blocks[0].mixer.tricks = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(UserError, match=r"knows no blocks\.0\.mixer\.tricks"):
        network_of(model)


@pytest.mark.parametrize(
    ("part", "problem"),
    [("mixer", "three_tier has no form"), ("copy", "keep is surprising"), ("words", "kind words")],
)
def test_what_no_export_can_have_is_refused(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, problem: str
) -> None:
    config = run.config
    if part == "mixer":
        monkeypatch.setattr(mixers, "MIXERS", {})
    elif part == "copy":
        copying = replace(config.model.copy, keep="surprising")
        run = replace(run, config=replace(config, model=replace(config.model, copy=copying)))
    else:
        run = replace(run, tokenizer=train_tokenizer(TEXTS, kind="words", vocab_size=300))
    with pytest.raises(UserError, match=problem):
        export_run(run, "onnx", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_packages_says_what_to_install(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"onnx.*not installed[\s\S]*pip install"):
        export_run(run, "onnx", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_imports_lead_to_the_files_beside() -> None:
    source = "from ys_llm.runs.exported.configuration_ys import YsConfig\n"
    assert flattened(source) == "from .configuration_ys import YsConfig\n"
