"""Pictures of the page of `ys serve` and of a run's report, for docs/images/.

`python scripts/screenshots.py RUN` serves the run on a free port, writes a text, mutes a memory,
and takes both pictures with the system's chromium: pip install playwright; apt install chromium.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 300_000
PROMPT = "Tell me a bedtime story about a patient owl, please."
_WIDTH, _HEIGHT = 1200, 900


def main() -> int:
    """Take both pictures; 1 where one is too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="name of a trained run in runs/")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    arguments.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
        paths = [
            take_report(tab, arguments.run, arguments.out),
            take_page(tab, arguments.run, arguments.out),
        ]
        browser.close()
    for path in paths:
        print(f"{path}: {path.stat().st_size:,} bytes")
    return int(any(path.stat().st_size > MOST_BYTES for path in paths))


def take_report(tab: Any, run: str, out: Path) -> Path:
    """The head and the curves of a run's report."""
    from ys_llm.runs.folder import find_run
    from ys_llm.runs.report import write_report

    tab.goto(write_report(find_run(Path("runs"), run)).resolve().as_uri())
    path = out / "report.png"
    tab.screenshot(path=path)
    return path


def take_page(tab: Any, run: str, out: Path) -> Path:
    """The page with a text, the same text without one of the memories, and some candidates."""
    with served(run) as address:
        tab.goto(address)
        tab.fill("#prompt", PROMPT)
        tab.fill("#seed", "2")
        tab.locator("#max_tokens").fill("120")
        tab.click("#write")
        wait_until_done(tab, 1)
        tab.locator("#mute input").nth(1).check()
        wait_until_done(tab, 2)
        tab.locator(".text").first.locator("span[data-i='14']").click()
        path = out / "page.png"
        tab.screenshot(path=path)
    return path


def wait_until_done(tab: Any, texts: int) -> None:
    """Wait for as many texts, the last one complete."""
    tab.wait_for_selector(f".branch:nth-child({texts})")
    tab.wait_for_selector("#status:text-matches('^Done')")


@contextmanager
def served(run: str) -> Iterator[str]:
    """The address of a server that is ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ys_llm", "serve", run, "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(300):
            with suppress(OSError):
                urllib.request.urlopen(address).close()
                break
            time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
