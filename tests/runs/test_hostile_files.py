"""No file that is loaded can run code, hang, or take the memory: every file, every kind of attack.

Each command runs in a process of its own, with a limit on what it may allocate beside what it had
and on how long it may take. An attack that worked would leave the folder `owned` behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load, save
from support.forked import Ended, ForkServer
from support.hostile_contents import (
    absurd_safetensors,
    json_bombs,
    pickles,
    resign,
    tagged_yaml,
    yaml_bombs,
    zip_bomb,
)
from support.training_runs import sentences, settings, write_corpus

from ys_llm.data.tokenizer import Tokenizer, train_tokenizer
from ys_llm.errors import EXIT_FAILED, EXIT_USAGE, UserError

SPARE_BYTES = 1 << 30
OVERSIZE = 1 << 36  # bytes of a file with nothing in it, more than there is memory
HANG_SECONDS = 40  # a guard; each takes far less than a second
LONGEST_LINE = 1000

GO_ON = ("train", "--run", "mine", "--set", "train.max_steps=7")
ASK = ("run", "mine", "--prompt", "The cat", "--max-tokens", "2", "--seed", "1")
EVALUATE = ("eval", "mine", "texts")
SHOW = ("config", "show", "--config", "hostile.yaml")
GENERATE = ("gen-data", "--kind", "hostile", "--out", "made")
GENERATE_AGAIN = ("gen-data", "--kind", "small", "--out", "made")
KIND = "{description: words, backend: program, program: spelling, rules: [], count: 9}\n"


@dataclass(frozen=True)
class Load:
    """A file that a command loads: a pattern of paths, all of which are replaced."""

    pattern: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.pattern} by {' '.join(self.words[:2])}"

    def put(self, folder: Path, content: bytes | str) -> list[Path]:
        """Replace the files, and let the sums of checkpoints agree, as an attacker would."""
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
        paths = sorted(folder.glob(self.pattern)) or [folder / self.pattern]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            resign(path)
        return paths


SAFETENSORS = (
    Load("runs/mine/model.safetensors", ASK),
    Load("runs/mine/checkpoints/step-*/model.safetensors", GO_ON),
    Load("runs/mine/checkpoints/step-*/optimizer.safetensors", GO_ON),
    Load("runs/mine/checkpoints/step-*/tensors.safetensors", GO_ON),
)
JSON = (
    Load("runs/mine/config.json", ASK),
    Load("runs/mine/tokenizer.json", ASK),
    Load("runs/mine/tokenizer.json", GO_ON),
    Load("runs/mine/checkpoints/step-*/progress.json", GO_ON),
    Load("texts/text.jsonl", EVALUATE),
)
YAML = (
    Load("hostile.yaml", SHOW),
    Load("gen/kinds/hostile.yaml", GENERATE),
    Load("runs/mine/config.yaml", ASK),
    Load("runs/mine/config.yaml", GO_ON),
)
REFUSED = (*SAFETENSORS, *JSON, *YAML)
MENDED = (  # what is of no use is made anew, or read as text
    Load("runs/mine/cache/*/meta.json", GO_ON),
    Load("runs/mine/cache/*/index.bin", GO_ON),
    Load("runs/mine/cache/*/tokens.bin", GO_ON),
    Load("runs/mine/.ys-lock", GO_ON),
)
EITHER = (
    Load("runs/mine/metrics.jsonl", GO_ON),
    Load("runs/mine/rollbacks.json", GO_ON),
    Load("runs/mine/checkpoints/step-*/SHA256SUMS", GO_ON),
    Load("made/MANIFEST.jsonl", GENERATE_AGAIN),
    Load("made/manifest-journal.jsonl", GENERATE_AGAIN),
    Load("texts/text.txt", EVALUATE),
    Load("texts/text.md", EVALUATE),
)
ALL = (*REFUSED, *MENDED, *EITHER)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_corpus(folder / "corpus", sentences(40))
    write_corpus(folder / "texts", sentences(3))
    (folder / "gen/kinds").mkdir(parents=True)
    (folder / "gen/kinds/small.yaml").write_text(KIND)
    changes = settings(Path("corpus"), ("train.checkpoint_interval=3",))
    words = [word for change in changes for word in ("--set", change)]
    for command in (("train", *words), GENERATE_AGAIN):
        ended = forks.run(*command, folder=folder)
        assert ended.code == 0, ended.stderr
    return folder


@dataclass(frozen=True)
class Scene:
    """A folder with a trained run in which one attack after the other is tried."""

    folder: Path
    marker: Path
    forks: ForkServer
    trained: Path

    def anew(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.trained, self.folder)

    def load(self, words: tuple[str, ...]) -> Ended:
        child = self.forks.start(*words, folder=self.folder, spare_bytes=SPARE_BYTES)
        return child.wait(seconds=HANG_SECONDS)

    def attack(self, load: Load, content: bytes | str) -> Ended:
        self.anew()
        load.put(self.folder, content)
        return self.load(load.words)


@pytest.fixture
def scene(tmp_path: Path, forks: ForkServer, trained: Path) -> Scene:
    return Scene(tmp_path / "scene", tmp_path / "owned", forks, trained)


def complaint(ended: Ended, marker: Path) -> str:
    """What a command that refused said: one line, or one for each problem of a configuration."""
    assert not marker.exists(), "a file that was loaded has run code"
    assert "Traceback" not in ended.stderr, f"a traceback: {ended.last_line}"
    lines = [line for line in ended.stderr.splitlines() if line.startswith("ys: ")]
    if ended.code == 0:
        assert not lines
        return ""
    assert ended.code in (EXIT_FAILED, EXIT_USAGE), ended
    assert lines == ended.stderr.splitlines()[-len(lines) :]
    assert len(lines) == 1 or ended.code == EXIT_USAGE
    assert max(map(len, lines)) < LONGEST_LINE
    return "\n".join(lines)


def faults(
    scene: Scene, load_: Load, contents: dict[str, Any], *, refused: bool | None
) -> Iterator[str]:
    """What is wrong with how a load takes each content, all of them at once."""
    for name, content in contents.items():
        try:
            ended = scene.attack(load_, content)
            said = complaint(ended, scene.marker)
        except (AssertionError, TimeoutError) as error:
            yield f"{name}: {error}"
            continue
        if refused is not None and bool(said) is not refused:
            yield f"{name}: {said or 'was taken'}"
        elif said and Path(load_.pattern).name not in ended.stderr and "step-" not in ended.stderr:
            yield f"{name}: names neither the file nor its checkpoint: {said}"


def test_the_attacks_work_where_nobody_takes_care(tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    naive: list[Callable[[], Any]] = [
        lambda: pickle.loads(contents["a pickle"]),
        lambda: pickle.loads(contents["a pickle of letters"]),
        lambda: np.load(tmp_path / "a numpy array of objects", allow_pickle=True),
        lambda: torch.load(tmp_path / "a torch file", weights_only=False),
        lambda: torch.load(tmp_path / "an old torch file", weights_only=False),
        lambda: yaml.unsafe_load(tags["apply"]),
        lambda: yaml.unsafe_load(tags["apply in a value"]),
        lambda: yaml.unsafe_load(tags["apply in full"]),
        lambda: yaml.unsafe_load(tags["a handle of its own"]),
        lambda: yaml.unsafe_load(tags["new"]),
    ]
    contents, tags = pickles(marker), tagged_yaml(marker)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for attack in naive:
        attack()
        marker.rmdir()


def some(contents: dict[str, Any], load_: Load, count: int) -> dict[str, Any]:
    """Other ones in every place: together the places meet all of them."""
    return {name: contents[name] for name in random.Random(str(load_)).sample([*contents], count)}


@pytest.mark.parametrize("load_", REFUSED, ids=str)
def test_a_pickle_is_refused_in_every_place(scene: Scene, load_: Load) -> None:
    contents = some({**pickles(scene.marker), "a zip bomb": zip_bomb()}, load_, 3)
    wrong = list(faults(scene, load_, contents, refused=True))
    assert not wrong


@pytest.mark.parametrize("load_", MENDED, ids=str)
def test_a_pickle_among_what_can_be_made_anew_is_made_anew(scene: Scene, load_: Load) -> None:
    wrong = list(faults(scene, load_, some(pickles(scene.marker), load_, 3), refused=False))
    assert not wrong


@pytest.mark.parametrize("load_", EITHER, ids=str)
def test_a_pickle_among_texts_does_nothing(scene: Scene, load_: Load) -> None:
    wrong = list(faults(scene, load_, some(pickles(scene.marker), load_, 2), refused=None))
    assert not wrong


@pytest.mark.parametrize("load_", SAFETENSORS, ids=str)
def test_a_lying_header_of_safetensors_is_refused(scene: Scene, load_: Load) -> None:
    files = absurd_safetensors()
    if load_ is not SAFETENSORS[0]:  # the same reader: a few show that it is asked
        files = some(files, load_, 6)
    wrong = list(faults(scene, load_, files, refused=True))
    assert not wrong


@pytest.mark.parametrize("load_", YAML, ids=str)
def test_a_tag_in_yaml_is_refused(scene: Scene, load_: Load) -> None:
    wrong = list(faults(scene, load_, tagged_yaml(scene.marker), refused=True))
    assert not wrong


@pytest.mark.parametrize("load_", YAML[:3], ids=str)
def test_yaml_that_is_far_more_than_it_seems_is_refused(scene: Scene, load_: Load) -> None:
    wrong = list(faults(scene, load_, yaml_bombs(), refused=True))
    assert not wrong


@pytest.mark.parametrize("load_", JSON, ids=str)
def test_json_that_describes_nothing_is_refused(scene: Scene, load_: Load) -> None:
    bombs = json_bombs()
    if "texts" in load_.pattern:
        del bombs["nothing"]  # is an empty text, and no complaint
    wrong = list(faults(scene, load_, bombs, refused=True))
    assert not wrong


@pytest.mark.parametrize("load_", [MENDED[0], MENDED[3], *EITHER[:4]], ids=str)
def test_json_bombs_elsewhere_do_nothing(scene: Scene, load_: Load) -> None:
    wrong = list(faults(scene, load_, some(json_bombs(), load_, 5), refused=None))
    assert not wrong


@pytest.mark.parametrize(
    "load_", [SAFETENSORS[0], JSON[0], JSON[1], YAML[0], MENDED[1], MENDED[2]], ids=str
)
def test_a_file_larger_than_the_memory_is_refused_or_made_anew(scene: Scene, load_: Load) -> None:
    scene.anew()
    for path in load_.put(scene.folder, b""):
        os.truncate(path, OVERSIZE)
    complaint(scene.load(load_.words), scene.marker)


def test_a_setting_on_the_command_line_or_in_the_environment_runs_nothing(scene: Scene) -> None:
    scene.anew()
    for text in tagged_yaml(scene.marker).values():
        value = text.partition(": ")[2] if text.startswith(("train:", "run:")) else text
        for words, environment in (
            (("--set", f"train.seed={value.strip()}"), {}),
            ((), {"YS_TRAIN__SEED": value.strip()}),
        ):
            ended = scene.forks.run(
                "config", "show", *words, folder=scene.folder, environment=environment
            )
            assert complaint(ended, scene.marker)


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The JSON object in a file, changed; its sum too."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    resign(path)


ABSURD_VALUES = ("x", None, -1, float("nan"), 1 << 70)


@pytest.mark.parametrize("name", ["config.json", "progress.json"])
def test_every_absurd_value_of_every_field_is_survived(scene: Scene, name: str) -> None:
    pattern = (
        "runs/mine/config.json" if name == "config.json" else f"runs/mine/checkpoints/*/{name}"
    )
    words = ASK if name == "config.json" else GO_ON
    fields = json.loads(next(scene.trained.glob(pattern)).read_text())
    needed = {"step", "has_records", "tokenizer_fingerprint"}
    wrong = []
    for field in sorted(needed if name == "config.json" else fields):
        for value in random.Random(field).sample((*ABSURD_VALUES, "left out"), 3):
            scene.anew()
            for path in scene.folder.glob(pattern):
                rewritten(path, lambda held, f=field, v=value: put_or_drop(held, f, v))
            try:
                complaint(scene.load(words), scene.marker)
            except (AssertionError, TimeoutError) as error:
                wrong.append(f"{field}: {value}: {error}")
    assert not wrong


def put_or_drop(held: dict[str, Any], field: str, value: Any) -> None:
    if value == "left out":
        del held[field]
    else:
        held[field] = value


def resaved(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """The tensors in a file, changed; its sum too."""
    tensors = load(path.read_bytes())
    change(tensors)
    path.write_bytes(save(tensors))
    resign(path)


def test_well_formed_tensors_that_fit_nothing_are_refused(scene: Scene) -> None:
    def with_random(tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
        return lambda tensors: tensors.__setitem__("random.cpu", tensor)

    def with_name(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
        return lambda tensors: tensors.__setitem__(name, tensor)

    def each(change: Callable[[torch.Tensor], torch.Tensor], *, only: str = "") -> Any:
        return lambda tensors: tensors.update(
            {k: change(v) for k, v in tensors.items() if k.startswith(only)}
        )

    attacks: list[tuple[str, Callable[[dict[str, torch.Tensor]], Any]]] = [
        ("tensors", with_random(torch.zeros(3, dtype=torch.uint8))),
        ("tensors", with_random(torch.zeros(5056))),
        ("tensors", with_random(torch.zeros(5056, dtype=torch.uint8))),
        ("tensors", lambda tensors: tensors.pop("random.cpu")),
        ("tensors", with_name("carried.x", torch.zeros(4))),
        ("tensors", with_name("carried.0.x", torch.zeros(4, 4))),
        ("optimizer", lambda tensors: tensors.pop(next(iter(tensors)))),
        ("optimizer", each(lambda moment: moment[None])),
        ("optimizer", each(lambda moment: torch.zeros(3), only="exp_avg.")),
        ("optimizer", each(lambda moment: moment.to(torch.int8))),
        ("optimizer", each(lambda step: step.new_zeros(7), only="step.")),
        ("model", each(lambda weight: weight.to(torch.int8))),
        ("model", each(lambda weight: weight.to(torch.complex64))),
        ("model", each(lambda weight: weight.unsqueeze(-1))),
    ]
    wrong = []
    for number, (name, change) in enumerate(attacks):
        scene.anew()
        for path in scene.folder.glob(f"runs/mine/checkpoints/*/{name}.safetensors"):
            resaved(path, change)
        try:
            assert complaint(scene.load(GO_ON), scene.marker), "was taken"
        except (AssertionError, TimeoutError) as error:
            wrong.append(f"attack {number} on {name}: {error}")
    assert not wrong


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_model_of_bad_numbers_says_so(scene: Scene, value: float) -> None:
    scene.anew()
    resaved(
        scene.folder / "runs/mine/model.safetensors",
        lambda tensors: [tensor.fill_(value) for tensor in tensors.values()],
    )
    assert "weights" in complaint(scene.load(ASK), scene.marker)


def test_sums_are_read_for_the_files_of_a_checkpoint_alone(scene: Scene) -> None:
    """A file of devices and of paths elsewhere, none of which may be opened: one never ends."""
    scene.anew()
    names = ("/dev/zero", "../../../../corpus/00.txt", "../../../../../../../../dev/zero", ".")
    for path in scene.folder.glob("runs/mine/checkpoints/*/SHA256SUMS"):
        path.write_text("".join(f"{'0' * 64}  {name}\n" for name in names) + path.read_text())
    complaint(scene.load(GO_ON), scene.marker)


@pytest.mark.parametrize("dtype", ["|O8", "V2", "<f4", "<u8", ">u2", "<u2,O", "(2,)<u2"])
def test_a_shard_of_another_dtype_is_made_anew(scene: Scene, dtype: str) -> None:
    scene.anew()
    for path in scene.folder.glob("runs/mine/cache/*/meta.json"):
        n_bytes = path.with_name("tokens.bin").stat().st_size
        n_tokens = n_bytes // np.dtype(dtype).itemsize
        rewritten(path, lambda meta, n=n_tokens: meta.update(dtype=dtype, n_tokens=n))
    assert not complaint(scene.load(GO_ON), scene.marker)


def test_a_shard_whose_ids_are_in_no_vocabulary_is_made_anew(scene: Scene) -> None:
    scene.anew()
    for path in scene.folder.glob("runs/mine/cache/*/meta.json"):
        tokens = np.full(path.with_name("tokens.bin").stat().st_size // 2, 60_000, dtype="<u2")
        path.with_name("tokens.bin").write_bytes(tokens.tobytes())
        index = path.with_name("index.bin").read_bytes()
        checksum = zlib.crc32(index, zlib.crc32(tokens.tobytes()))
        rewritten(path, lambda meta, c=checksum: meta.update(checksum=c))
    assert not complaint(scene.load(GO_ON), scene.marker)


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}},
        {"normalizer": {"type": "Lowercase"}},
        {"post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
        {
            "truncation": {
                "direction": "Right",
                "max_length": 1,
                "strategy": "LongestFirst",
                "stride": 0,
            }
        },
        {"decoder": {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}},
        {"added_tokens": []},
        {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}},
    ],
    ids=lambda part: next(iter(part)),
)
def test_a_tokenizer_with_parts_that_ours_have_not_is_refused(
    tmp_path: Path, part: dict[str, Any]
) -> None:
    path = tmp_path / "tokenizer.json"
    train_tokenizer(sentences(9), kind="bpe", vocab_size=300).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | part))
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer of ys"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    "mixer", ["os", "__init__", "antigravity", "three_tier.os", "..train", "a/b"]
)
def test_a_mixer_is_a_file_of_the_package_and_nothing_else(scene: Scene, mixer: str) -> None:
    scene.anew()
    (scene.folder / "a").mkdir()
    (scene.folder / "a" / "b.py").write_text(f"import os; os.mkdir({str(scene.marker)!r})")
    words = ("train", "--data", "corpus", "--set", f"model.layers=[{mixer}]", "--set", "run=new")
    said = complaint(scene.load(words), scene.marker)
    assert "layers" in said


@pytest.mark.parametrize("run", ["..", "../other", "/etc", "a/../../b", ".hidden", "", "a\\nb"])
def test_the_name_of_a_run_leads_nowhere_else(scene: Scene, run: str) -> None:
    scene.anew()
    (scene.folder / "hostile.yaml").write_text(f'run: "{run}"\ndata: {{path: corpus}}\n')
    said = complaint(scene.load(("train", "--config", "hostile.yaml")), scene.marker)
    assert "hostile.yaml:1: run must be a folder name" in said


def test_a_manifest_cannot_have_files_elsewhere_removed(scene: Scene) -> None:
    scene.anew()
    victims = [scene.folder / "corpus" / "00.txt", scene.folder / "victim.txt"]
    victims[1].write_text("mine")
    manifest = scene.folder / "made" / "MANIFEST.jsonl"
    sound = manifest.read_text()
    for name, victim in zip(("../corpus/00.txt", str(victims[1])), victims, strict=True):
        known = hashlib.sha256(victim.read_bytes()).hexdigest()
        line = {"file": name, "records": 0, "sha256": known, "was": []}
        manifest.write_text(f"{sound}{json.dumps(line)}\n")
        said = complaint(scene.load((*GENERATE_AGAIN, "--force")), scene.marker)
        assert "MANIFEST.jsonl:12" in said and "a name without a folder" in said
        assert all(victim.exists() for victim in victims)
