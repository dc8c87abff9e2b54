"""`auto` is CUDA where there is a device, and a device that is missing is refused."""

import pytest
import torch

from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.model.device import resolve_device


@pytest.mark.parametrize(
    ("name", "is_available", "expected"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_a_device_is_resolved(
    monkeypatch: pytest.MonkeyPatch, name: str, is_available: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    assert resolve_device(name, setting="--device", fix="").type == expected


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device is cuda.*Type --device cpu") as caught:
        resolve_device("cuda", setting="--device", fix="Type --device cpu")
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize("command", [["run", "--prompt", "x"], ["eval", "tiny", "texts"]])
def test_run_and_eval_load_the_model_onto_the_device(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ys_llm.cli.main import main
    from ys_llm.runs import folder, model_files

    asked: list[torch.device] = []

    def load_run(path: object, *, device: torch.device) -> None:
        asked.append(device)
        raise UserError("far enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(folder, "find_run", lambda *_: "tiny")
    monkeypatch.setattr(model_files, "load_run", load_run)
    for flags, expected in (([], "cuda"), (["--device", "cpu"], "cpu")):
        assert main([*command, *flags]) == 1
        assert asked.pop().type == expected
