"""`ys serve` as a command: how it begins, what it refuses, and how it ends."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import httpx
import pytest
from support.forked import ForkServer
from support.served import train_small

from ys_llm.cli import main as cli
from ys_llm.cli import serve as command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli-serve")
    train_small(folder, "run=small")
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_it_says_that_it_is_ready_answers_and_ends(
    forks: ForkServer, folder: Path, number: int, code: int
) -> None:
    child = forks.start("serve", "small", "--port", "0", folder=folder)
    ends = time.monotonic() + 60
    while "ready" not in child.stdout():
        assert time.monotonic() < ends, child.stderr()
        time.sleep(0.02)
    url = child.stdout().split()[1]
    assert httpx.get(f"{url}/api/tags").json()["models"][0]["name"] == "small:latest"
    child.send(number)
    ended = child.wait()
    assert ended.code == code
    assert ended.stdout == f"ready  {url}\n"
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_one_clear_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port)]) == 1
    assert f"ys: port {port} is in use. Give another one" in capsys.readouterr().err


def test_others_need_a_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(["serve", "small", "--host", "0.0.0.0"]) == 2
    assert "Type: ys serve small --host 0.0.0.0 --api-key KEY" in capsys.readouterr().err


def test_without_its_packages_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert cli.main(["serve"]) == 1
    assert "pip install 'ys_llm[serve]'" in capsys.readouterr().err


def test_a_run_that_does_not_exist_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(["serve", "none"]) == 3
    assert "Choose one of: small" in capsys.readouterr().err
