"""The page at `/` in a real browser: type, stream, stop, fork, mute, reload."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.served import Served, served

from ys_llm.config.schema import Config, ModelConfig
from ys_llm.config.sft import SftConfig
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import load_run, save_model
from ys_llm.serving.server import Serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="apt install chromium")

PROMPT = "Who sat on the mat in story 3?"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Served) -> Iterator[Any]:
    yield from page_of(browser, server)


@pytest.fixture
def chat(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page of a model that was fine-tuned on conversations, and ends its answers."""
    run = tmp_path / "chatty"
    run.mkdir()
    tokenizer = train_tokenizer(["the cat sat on the mat"], kind="bytes", vocab_size=258)
    tokenizer = tokenizer.with_roles()
    config = Config(run="chatty", model=ModelConfig(d_model=16, n_layers=1, d_mlp=24))
    model = Model(config.model, vocab_size=tokenizer.vocab_size)
    tokenizer.save(run / "tokenizer.json")
    facts = {"step": 1, "tokens": 1, "parameters": 1, "val_bits_per_byte": 1, "has_records": True}
    config = replace(config, sft=SftConfig(method="full"))
    save_model(run, config, model, tokenizer, facts)
    with served(Serving({"chatty": run}, load_run)) as running:
        yield from page_of(browser, running)


def page_of(browser: Any, server: Served) -> Iterator[Any]:
    """The page, with what the browser complained about at the end."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page, complaints = context.new_page(), list[str]()
    page.set_default_timeout(20_000)
    page.on("console", lambda one: complaints.append(one.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{server.url}/")
    page.wait_for_selector("#mute input")
    yield page
    context.close()
    assert complaints == []


def set_slider(page: Any, name: str, value: float) -> None:
    page.eval_on_selector(
        f"#{name}",
        "(slider, value) => { slider.value = value; "
        "slider.dispatchEvent(new Event('input', { bubbles: true })) }",
        value,
    )


def write(page: Any, *, texts: int = 1) -> None:
    page.fill("#prompt", PROMPT)
    page.click("#write")
    wait(page, texts)


def wait(page: Any, texts: int) -> None:
    page.wait_for_selector(f".branch:nth-child({texts})")
    page.wait_for_selector("#status:text-matches('^Done')")


def tokens(page: Any, text: int) -> list[str]:
    found: list[str] = page.locator(".text").nth(text).locator("[data-i]").all_text_contents()
    return found


def note(page: Any, text: int) -> str:
    return str(page.locator(".note").nth(text).text_content())


def test_a_text_is_streamed_with_its_memory_and_candidates(page: Any) -> None:
    set_slider(page, "max_tokens", 32)
    write(page)
    assert 0 < len(tokens(page, 0)) <= 32
    drawn = page.locator("canvas").first.get_attribute("aria-label")
    assert "main holds" in drawn
    page.locator(".text").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#candidates").is_visible()
    assert page.locator("#list li").count() == 10
    page.keyboard.press("Escape")
    assert not page.locator("#candidates").is_visible()


def test_a_fork_shares_the_beginning_and_goes_on_with_the_word_that_was_chosen(page: Any) -> None:
    set_slider(page, "max_tokens", 32)
    write(page)
    before = tokens(page, 0)
    page.locator(".text").first.locator("[data-i='3']").click()
    page.locator("#list button:enabled").last.click()
    wait(page, 2)
    given = page.locator(".text .given").nth(1).text_content()
    assert given.startswith("".join(before[:3]))
    assert "fork of A" in note(page, 1)


def test_stopping_keeps_what_is_there_and_going_on_continues_it(page: Any) -> None:
    set_slider(page, "max_tokens", 1024)
    set_slider(page, "temperature", 2)
    page.fill("#prompt", PROMPT)
    page.click("#write")
    page.wait_for_selector("[data-i='2']", state="attached")
    page.click("#stop")
    page.wait_for_selector("#stop:disabled")
    kept = len(tokens(page, 0))
    assert kept < 1024
    set_slider(page, "max_tokens", 16)
    page.locator(".more").first.click()
    wait(page, 2)
    assert "goes on from A" in note(page, 1)


def test_muting_a_memory_writes_the_text_again_beside_it_with_the_same_seed(page: Any) -> None:
    set_slider(page, "max_tokens", 32)
    write(page)
    page.locator("#mute input").first.check()
    wait(page, 2)
    assert "without main" in note(page, 1) and "as A" in note(page, 1)
    page.locator("#mute input").first.uncheck()
    wait(page, 3)
    assert tokens(page, 2) == tokens(page, 0)


def test_what_is_there_survives_a_reload_and_can_be_gone_on_from(page: Any) -> None:
    set_slider(page, "max_tokens", 16)
    set_slider(page, "top_k", 7)
    write(page)
    before = tokens(page, 0)
    page.reload()
    page.wait_for_selector(".branch")
    assert tokens(page, 0) == before
    assert page.input_value("#prompt") == PROMPT
    assert page.locator("output[for='top_k']").text_content() == "7"
    page.locator(".text").first.locator("[data-i='1']").click()
    page.click("#fork")
    wait(page, 2)


def test_a_conversation_is_laid_out_as_turns_after_its_system_text(chat: Any) -> None:
    set_slider(chat, "max_tokens", 1024)
    set_slider(chat, "temperature", 2)
    chat.fill("#system", "You are called Pip.")
    for number, text in enumerate(["Who are you?", "And who am I?"], 1):
        chat.fill("#prompt", text)
        chat.click("#write")
        wait(chat, number)
        assert chat.input_value("#prompt") == ""
    turns = [one.locator(".asked p").all_text_contents() for one in chat.locator(".branch").all()]
    assert turns == [["System textYou are called Pip.", "YouWho are you?"], ["YouAnd who am I?"]]
    assert "goes on from A" in note(chat, 1)


def test_the_page_fits_a_phone_and_every_control_has_a_name(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    set_slider(page, "max_tokens", 16)
    assert not page.locator("#system").is_visible()  # the model has learned no conversations
    write(page)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    nameless = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea, button')]"
        ".filter(one => !(one.labels?.length || one.ariaLabel || one.textContent.trim()))"
        ".map(one => one.outerHTML)"
    )
    assert nameless == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_axe_finds_no_barrier(page: Any, scheme: str, width: int) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
    )
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    set_slider(page, "max_tokens", 16)
    write(page)
    page.locator(".text").first.focus()
    page.keyboard.press("ArrowRight")
    page.locator("#candidates").wait_for(state="visible")
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
