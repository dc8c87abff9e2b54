"""A configuration is found by its path or, where ys ships it, by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

import ys_llm
from ys_llm.config.shipped import find_config, shipped_folder
from ys_llm.config.sources import load_config
from ys_llm.errors import EXIT_USAGE, UserError


def test_every_shipped_configuration_is_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = sorted(shipped_folder().glob("*.yaml"))
    assert "quickstart" in [file.stem for file in files]
    for file in files:
        assert find_config(file.stem) == file
        assert load_config(find_config(file.stem)).config.run


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "own.yaml", "deep/quickstart"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("run: own\n")
        assert find_config(name) == Path(name)
    assert find_config("missing.yaml") == Path("missing.yaml")


@pytest.mark.parametrize(("name", "hint"), [("quikstart", "quickstart?"), ("zzz", "default, ")])
def test_an_unknown_name_is_refused_with_those_that_exist(name: str, hint: str) -> None:
    with pytest.raises(UserError, match="no shipped configuration of that name") as caught:
        find_config(name)
    assert hint in caught.value.fix
    assert caught.value.exit_code == EXIT_USAGE


def test_an_installed_package_uses_the_folder_inside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ys_llm, "__file__", str(tmp_path / "ys_llm" / "__init__.py"))
    assert shipped_folder() == tmp_path / "configs"
    (tmp_path / "ys_llm" / "configs").mkdir(parents=True)
    assert shipped_folder() == tmp_path / "ys_llm" / "configs"
