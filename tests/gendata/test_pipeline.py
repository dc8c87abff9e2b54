"""From a plan to a corpus: the same one for any order of answers, after failures and kills.

The real client of ollama speaks to a server that fails on demand; kills are real.
"""

from __future__ import annotations

import io
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.gendata_runs import (
    COPIED,
    KINDS,
    RETOLD,
    TALE,
    answers,
    child,
    content,
    entries,
    fill,
    llm,
    make_plan,
    model,
    run_child,
    write_kinds,
)
from support.ollama_faults import FAULTS, FaultServer, closed_port

from ys_llm.cli.main import main
from ys_llm.data.manifest import NAME as MANIFEST
from ys_llm.data.manifest import read_manifest
from ys_llm.data.readers import read_documents
from ys_llm.errors import (
    EXIT_BACKEND_DOWN,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    UserError,
)
from ys_llm.gendata import command
from ys_llm.gendata.command import GenerateRequest
from ys_llm.gendata.generation import progress_bar
from ys_llm.gendata.generation.generate import GenerateResult
from ys_llm.gendata.generation.journal import NAME as JOURNAL
from ys_llm.gendata.generation.journal import corpus_lock
from ys_llm.gendata.recipes.load import load_recipes

ROOT = Path(__file__).resolve().parents[2]
SOON_SECONDS = 1.0
KILLS = 12  # cases; each is killed twice at file operations, and then finished
ALL_SPELLINGS = 40


@pytest.fixture(autouse=True, scope="module")
def no_power_is_cut() -> Iterator[None]:
    """Skip fsync, which would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kinds(tmp_path_factory.mktemp("kinds"))


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run."""

    result: GenerateResult
    out: Path
    asked: int

    @property
    def content(self) -> dict[str, str]:
        return content(self.out)


@pytest.fixture(scope="module")
def whole(kinds: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    out = tmp_path_factory.mktemp("whole") / "out"
    with llm() as server:
        result = fill(make_plan(kinds), out, server)
    return Whole(result, out, len(server.asked))


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "what was waited for never came"
        time.sleep(0.002)


# The uninterrupted run.


def test_every_item_of_the_plan_is_decided_in_its_order(kinds: Path, whole: Whole) -> None:
    planned = [(kind.name, item.key) for kind, item in make_plan(kinds).items()]
    assert [entry["key"] for entry in entries(whole.out)] == [
        key for name, key in planned if name != "spell"
    ]
    assert [line["key"] for line in read_manifest(whole.out)["spell-01.md"].records] == [
        key for name, key in planned if name == "spell"
    ]
    assert whole.result.missing == 0 and whole.result.failure is None


def test_records_are_fixed_and_verified(whole: Whole) -> None:
    accepted = [entry for entry in entries(whole.out) if entry["status"] == "accepted"]
    tales = [entry for entry in accepted if entry["kind"] == "tale"]
    assert any(entry["provenance"]["fixed"] == ["preamble"] for entry in tales)
    for entry in tales:
        assert "Here is the tale" not in entry["record"]["response"]
        assert entry["provenance"]["verified"] == ["words"]
        assert len(entry["provenance"]["requests"]) == 2
    texts = {(entry["record"]["prompt"], entry["record"]["response"]) for entry in tales}
    assert len(texts) == len(tales)


def test_every_try_is_an_accepted_record_or_a_counted_rejection(whole: Whole) -> None:
    lines = entries(whole.out)
    counts = Counter(one["name"] for line in lines for one in line["rejections"])
    accepted = sum(line["status"] == "accepted" for line in lines) + ALL_SPELLINGS
    result = whole.result
    assert counts == result.rejections
    assert sum(line["tries"] for line in lines) + ALL_SPELLINGS == result.tries
    assert result.tries == result.accepted + counts.total()
    assert (result.planned, result.accepted) == (len(lines) + ALL_SPELLINGS, accepted)
    assert result.accepted + result.dropped == result.planned == result.decided_now
    expected = {"words", "refusal", "cut_off", "near_duplicate", "mentions"}
    assert expected <= counts.keys(), "the test's model no longer causes every rejection"


def test_a_dropped_item_has_its_reason(whole: Whole) -> None:
    for entry in entries(whole.out):
        if entry["status"] == "dropped":
            last = entry["rejections"][-1]
            assert entry["reason"] == f"{last['name']}: {last['reason']}"
            assert len(entry["rejections"]) == entry["tries"]
        else:
            assert entry["reason"] == "" and entry["tries"] == len(entry["rejections"]) + 1


def test_a_try_has_seeds_of_its_own(kinds: Path, tmp_path: Path) -> None:
    with llm("empty", "good", "empty", "thinking", "good") as server:
        result = fill(make_plan(kinds, "tale", count=1), tmp_path / "out", server)
    assert result.rejections["empty_answer"] == 3
    seeds = [asked.body["options"]["seed"] for asked in server.asked]
    assert len(set(seeds)) == len(seeds)


def test_a_chain_keeps_the_facts_of_its_program(kinds: Path, whole: Whole) -> None:
    retold = [entry for entry in entries(whole.out) if entry["kind"] == "retold"]
    assert len(retold) == 3
    for entry in retold:
        if entry["status"] == "accepted":
            story = entry["provenance"]["requests"][0]["prompt"].removeprefix("Tell it again: ")
            assert entry["record"] == {"prompt": f"Retell: {story}", "response": story}
    assert any(entry["status"] == "accepted" for entry in retold)


def test_the_corpus_does_not_depend_on_the_order_of_answers(
    kinds: Path, whole: Whole, tmp_path: Path
) -> None:
    slow = ["slow", "good", "good"] * 6
    with llm(*slow, slow_seconds=0.06) as server:
        fill(make_plan(kinds), tmp_path / "out", server, workers=2)
    assert server.most_at_once == 2
    assert content(tmp_path / "out") == whole.content


# Interruptions.


def request_for(kinds: Path, out: Path, host: str, workers: int = 1) -> GenerateRequest:
    names = tuple(sorted(KINDS))
    return GenerateRequest(names, out, seed=1, host=host, workers=workers, folders=(kinds,))


@pytest.fixture(scope="module")
def operations(kinds: Path, whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many file operations a run makes."""
    base = tmp_path_factory.mktemp("counted")
    with llm() as server:
        request = request_for(kinds, base / "out", server.address)
        assert run_child(request, base / "said", count_in=base / "count") == 0
    assert content(base / "out") == whole.content
    return int((base / "count").read_text())


@pytest.mark.parametrize(
    "case", [pytest.param(n, marks=[pytest.mark.slow] if n >= 8 else []) for n in range(KILLS)]
)
def test_a_killed_run_resumes_without_a_trace(
    case: int, kinds: Path, whole: Whole, operations: int, tmp_path: Path
) -> None:
    source = random.Random(case)
    # Every second case dies near the end, where the files are written.
    spots = range(operations) if case % 2 else range(operations - 25, operations)
    with llm() as server:
        request = request_for(kinds, tmp_path / "out", server.address, workers=1 + case % 2)
        at = source.choice(spots)
        assert run_child(request, tmp_path / "said", kill_at=at) == -signal.SIGKILL
        run_child(request, tmp_path / "said", kill_at=source.randrange(1 + operations // 2))
        assert run_child(request, tmp_path / "said") == 0, (tmp_path / "said.err").read_text()
    left = {name for name in content(tmp_path / "out") if name.endswith(".tmp")}
    assert {name: text for name, text in content(tmp_path / "out").items() if name not in left} == (
        whole.content
    )
    keys = [entry["key"] for entry in entries(tmp_path / "out")]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("requests", [1, 7, 20])
def test_a_run_killed_while_it_waits_loses_no_record(
    requests: int, kinds: Path, whole: Whole, tmp_path: Path
) -> None:
    with llm(*["good"] * (requests - 1), "silent") as server:
        request = request_for(kinds, tmp_path / "out", server.address)
        with child(request, tmp_path / "said") as process:
            until(lambda: len(server.asked) == requests)
            process.kill()
            process.join()
        held = len(entries(tmp_path / "out"))
        assert run_child(request, tmp_path / "said") == 0
    assert held > 0 or requests < 9
    assert content(tmp_path / "out") == whole.content


def test_answers_behind_a_slow_request_are_journalled_at_once(kinds: Path, tmp_path: Path) -> None:
    expected = 12
    tales = tmp_path / "without interruption"
    with llm() as server:
        fill(make_plan(kinds, "tale"), tales, server)
        needed = len(server.asked)
    with llm("silent") as server:
        request = request_for(kinds, tmp_path / "out", server.address, workers=4)
        request = replace(request, kinds=("tale",))
        with child(request, tmp_path / "said") as process:
            until(lambda: len(answers(tmp_path / "out")) >= expected)
            process.kill()
            process.join()
        assert len(entries(tmp_path / "out")) < 4, "the silent request is one of the first four"
        kept = len(answers(tmp_path / "out"))
    with llm() as server:  # another one: the first may still be reading what a dead process asked
        request = request_for(kinds, tmp_path / "out", server.address, workers=4)
        assert run_child(replace(request, kinds=("tale",)), tmp_path / "said") == 0
        assert len(server.asked) <= needed - kept, "an answer was asked for again"
    assert content(tmp_path / "out") == content(tales)


def test_ctrl_c_stops_within_a_second_and_says_what_to_type(
    kinds: Path, whole: Whole, tmp_path: Path
) -> None:
    with llm(*["good"] * 12, "drip") as server:
        request = request_for(kinds, tmp_path / "out", server.address)
        with child(request, tmp_path / "said") as process:
            until(lambda: len(server.asked) == 13)
            time.sleep(0.1)
            began = time.monotonic()
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
            process.join(10)
            assert time.monotonic() - began < SOON_SECONDS
            assert process.exitcode == EXIT_INTERRUPTED
        assert server.asked[12].left.wait(SOON_SECONDS), "the request stays open"
        said = (tmp_path / "said.err").read_text()
        assert f"To resume, type: {request.command()}" in said and "Traceback" not in said
        assert "still to be made" in (tmp_path / "said.out").read_text()
        files = content(tmp_path / "out")
        assert MANIFEST in files and any(name.startswith("retold-") for name in files)
        assert run_child(request, tmp_path / "said") == 0
    assert content(tmp_path / "out") == whole.content


def test_the_command_to_resume_has_every_option() -> None:
    request = GenerateRequest(("a", "b"), Path("my data"), count=3, seed=0, model="m:1b", workers=2)
    assert request.command() == (
        "ys gen-data --kind a,b --count 3 --seed 0 --model m:1b --workers 2 --out 'my data'"
    )


def test_a_stop_in_another_thread_keeps_what_is_decided(
    kinds: Path, whole: Whole, tmp_path: Path
) -> None:
    stop = threading.Event()
    with llm(*["good"] * 12, "stall") as server, ThreadPoolExecutor(1) as other:
        running = other.submit(
            fill,
            make_plan(kinds),
            tmp_path / "out",
            server,
            should_stop=stop.is_set,
            first_seconds=20.0,
        )
        until(lambda: len(server.asked) == 13)
        stop.set()
        result = running.result(timeout=SOON_SECONDS + 5)
    assert result.stopped and result.missing > 0
    decided = len(entries(tmp_path / "out")) + ALL_SPELLINGS
    assert result.accepted + result.dropped == decided


# Failures of the back end.

REJECTED = {"empty": "empty_answer", "blank": "empty_answer", "thinking": "empty_answer"}
REJECTED |= {"length": "cut_off", "full context": "context_full", "400 context": "did_not_fit"}
LASTING = {"400": EXIT_FAILED, "401": EXIT_FAILED, "404": EXIT_FAILED}
LASTING |= {"page not found": EXIT_BACKEND_DOWN, "redirect": EXIT_BACKEND_DOWN}
HARMLESS = {"good", "slow"}
TRANSIENT = sorted(set(FAULTS) - REJECTED.keys() - LASTING.keys() - HARMLESS)


@pytest.fixture(scope="module")
def two(kinds: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two tales, made without faults."""
    out = tmp_path_factory.mktemp("two") / "out"
    with llm() as server:
        fill(make_plan(kinds, "tale", count=2), out, server)
    return content(out)


@pytest.mark.parametrize("fault", sorted(set(TRANSIENT) - {"drip"}))  # whose deadline is the last
def test_a_transient_failure_leaves_no_trace(
    fault: str, kinds: Path, two: dict[str, str], tmp_path: Path
) -> None:
    with llm("good", fault) as server:
        result = fill(make_plan(kinds, "tale", count=2), tmp_path / "out", server)
    assert result.failure is None and server.asked[1].fault == fault
    assert content(tmp_path / "out") == two


@pytest.mark.parametrize("fault", [*TRANSIENT, *LASTING])
def test_a_lasting_failure_ends_the_run_and_loses_nothing(
    fault: str, kinds: Path, two: dict[str, str], tmp_path: Path
) -> None:
    plan = make_plan(kinds, "tale", count=2)
    with llm(*["good"] * 30) as server:
        fill(make_plan(kinds, "tale", count=1), tmp_path / "out", server)
    with llm(fault, fault) as server:
        result = fill(plan, tmp_path / "out", server, total_seconds=0.6)
    assert result.failure is not None and result.missing == 1
    assert result.failure.exit_code == LASTING.get(fault, EXIT_BACKEND_DOWN)
    assert result.failure.fix and "1 items are still to be made" in str(result)
    assert len(entries(tmp_path / "out")) == 1
    with llm() as server:
        fill(plan, tmp_path / "out", server)
    assert content(tmp_path / "out") == two


@pytest.mark.parametrize("fault", sorted(REJECTED))
def test_an_unusable_answer_is_asked_for_with_another_seed(
    fault: str, kinds: Path, tmp_path: Path
) -> None:
    with llm(fault) as server:
        result = fill(make_plan(kinds, "tale", count=1), tmp_path / "out", server)
    assert entries(tmp_path / "out")[0]["rejections"][0]["name"] == REJECTED[fault]
    assert result.rejections[REJECTED[fault]] >= 1
    first, second = (asked.body["options"]["seed"] for asked in server.asked[:2])
    assert first != second


def test_every_fault_has_its_test() -> None:
    assert set(TRANSIENT) | LASTING.keys() | REJECTED.keys() | HARMLESS == set(FAULTS)


def test_a_server_that_is_gone_ends_in_exit_code_4(kinds: Path, tmp_path: Path) -> None:
    with closed_port() as port:
        request = GenerateRequest(("tale",), tmp_path / "out", host=f":{port}", folders=(kinds,))
        assert run_child(request, tmp_path / "said") == EXIT_BACKEND_DOWN
    said = (tmp_path / "said.err").read_text()
    assert "ollama serve" in said and "Traceback" not in said
    assert not [path for path in (tmp_path / "out").iterdir() if path.name != JOURNAL]


# Answers that cannot be used.


def answering(text: Callable[[str], str]) -> FaultServer:
    """A server whose model's answers are changed by a function."""
    return FaultServer(answer=lambda body: text(model(body)))


def test_reasoning_is_removed_before_anything_else_sees_the_answer(
    kinds: Path, two: dict[str, str], tmp_path: Path
) -> None:
    with answering("<think>Hm.\n\nSo.</think>\n\n{}".format) as server:
        fill(make_plan(kinds, "tale", count=2), tmp_path / "out", server)
    assert content(tmp_path / "out") == two


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("<think>A fox, or a queen? {}", "empty_answer"),
        ("{} <Thinking>And then", "empty_answer"),
        ("A fox it is.</think> {}", "reasoning"),
        ("<think>a<think>b</think>c</think>{}", "reasoning"),
    ],
)
def test_reasoning_that_cannot_be_removed_rejects_the_answer(
    text: str, name: str, kinds: Path, tmp_path: Path
) -> None:
    with answering(text.format) as server:
        result = fill(make_plan(kinds, "tale", count=1), tmp_path / "out", server)
    assert result.accepted == 0 and result.rejections.keys() == {name}


@pytest.mark.parametrize("text", ["", COPIED], ids=["empty", "always the same"])
def test_a_model_without_usable_answers_ends_the_run(
    text: str, kinds: Path, tmp_path: Path
) -> None:
    out, plan = tmp_path / "out", make_plan(kinds, "tale", count=30)
    with answering(lambda _: text) as server:
        result = fill(plan, out, server, workers=2)
        assert result.failure is not None and result.failure.exit_code == EXIT_BACKEND_DOWN
        assert "the last 20 items were all dropped" in result.failure.problem
        assert result.dropped >= 20 and result.missing > 0
    with llm() as server:
        result = fill(plan, out, server)
        assert "complete" not in str(result) and "--retry-dropped" in str(result)
        dropped = result.dropped
        assert dropped >= 20
        result = fill(replace(plan, retry_dropped=True), out, server)
    assert result.decided_now == dropped and result.missing == 0 and result.failure is None
    assert result.accepted > 20
    assert result.tries == result.accepted + sum(result.rejections.values())
    seeds = [
        sent["options"]["seed"]
        for entry in entries(out)
        for sent in entry["provenance"]["requests"]
    ]
    assert len(set(seeds)) == len(seeds), "a retry has new seeds"
    assert fill(plan, out).from_model_now == 0, "what was retried is not asked for again"


def test_a_short_plan_of_which_nothing_was_accepted_fails_too(kinds: Path, tmp_path: Path) -> None:
    with answering(lambda _: "") as server:
        request = request_for(kinds, tmp_path / "out", server.address)
        request = replace(request, kinds=("tale",), count=3)
        assert run_child(request, tmp_path / "said") == EXIT_BACKEND_DOWN
    said = (tmp_path / "said.err").read_text()
    assert "the last 3 items were all dropped" in said and "empty_answer" in said
    assert f"ys gen-data --kind tale --host {server.address} --check" in said
    assert f"Then type: {request.command(retry_dropped=True)}" in said
    assert request.command(retry_dropped=True).endswith(" --retry-dropped")


PLAIN = """\
description: tales
model: tiny
slots: {who: [a fox, a miller, a sailor, a queen], where: [on a hill, by the sea, in a cellar]}
ask:
  - {prompts: ["Tell a tale of {who} {where}."]}
output: {prompts: ["Tell me of {who} {where}."]}
sampling: {num_predict: 100}
rules: []
verifiers: {}
count: 10
max_tries: 3
"""
SAME = "Once there was a very small fox who liked to count the stars at night."


@pytest.mark.parametrize("count", [12, 60])
def test_a_model_that_always_gives_one_good_answer_ends_the_run(count: int, tmp_path: Path) -> None:
    own = write_kinds(tmp_path / "kinds", tale=PLAIN)
    with answering(lambda _: SAME) as server:
        result = fill(make_plan(own, "tale", count=count), tmp_path / "out", server)
    assert result.accepted == 1
    assert result.rejections["repeated_answer"]
    assert result.rejections.keys() <= {"repeated_answer", "near_duplicate", "duplicate"}
    assert result.failure is not None and result.failure.exit_code == EXIT_BACKEND_DOWN
    drops = min(count - 1, 20)
    assert f"the last {drops} items were all dropped" in result.failure.problem


def test_a_short_answer_may_come_again(tmp_path: Path) -> None:
    own = write_kinds(tmp_path / "kinds", tale=PLAIN)
    with answering(lambda _: "Yes, it is.") as server:
        result = fill(make_plan(own, "tale", count=6), tmp_path / "out", server)
    assert "repeated_answer" not in result.rejections


def test_a_few_drops_among_good_answers_fail_nothing(tmp_path: Path) -> None:
    own = write_kinds(tmp_path / "kinds", tale=PLAIN)
    numbers = iter(range(1000))
    with answering(lambda _: SAME if (n := next(numbers)) < 12 else f"{SAME} {n}" * 2) as server:
        result = fill(make_plan(own, "tale", count=12), tmp_path / "out", server)
    assert result.dropped and result.failure is None


def test_a_plan_of_which_every_item_was_dropped_is_no_success_later(
    kinds: Path, tmp_path: Path
) -> None:
    with answering(lambda _: "") as server:
        request = request_for(kinds, tmp_path / "out", server.address)
        request = replace(request, kinds=("tale",), count=3)
        assert run_child(request, tmp_path / "said") == EXIT_BACKEND_DOWN
        assert run_child(request, tmp_path / "said") == EXIT_FAILED
    said = (tmp_path / "said.err").read_text()
    assert "all 3 items of the plan were dropped" in said
    assert f"type: {request.command(retry_dropped=True)}" in said


def test_an_answer_that_fills_the_context_is_rejected(tmp_path: Path) -> None:
    own = write_kinds(tmp_path / "kinds", tale=PLAIN)
    with FaultServer("full context", answer=lambda _: SAME) as server:
        result = fill(make_plan(own, "tale", count=1), tmp_path / "out", server)
    assert result.rejections == {"context_full": 1}
    assert result.accepted == 1, "the second try, which left room"


def test_a_dry_run_refuses_the_prompts_that_generating_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = TALE.replace("Name a tale", "Name a tale " + "and so on " * 3100)
    write_kinds(tmp_path / "gen" / "kinds", mine=long, fine=TALE)
    monkeypatch.chdir(tmp_path)
    assert main(["gen-data", "--kind", "fine", "--dry-run"]) == 0
    assert main(["gen-data", "--kind", "mine", "--dry-run"]) == EXIT_USAGE
    shown = capsys.readouterr()
    assert "mine, item 0, step title: the prompt has" in shown.err
    assert "--- mine 0" in shown.out, "the prompts are shown all the same"


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    long = TALE.replace("Name a tale", "Name a tale " + "and so on " * 3100)
    kinds = write_kinds(tmp_path / "kinds", tale=long, spell=KINDS["spell"])
    with llm() as server, pytest.raises(UserError, match=r"tale, item 0, step title: the prompt"):
        fill(make_plan(kinds), tmp_path / "out", server)
    assert not server.asked and not entries(tmp_path / "out")


def test_an_answer_that_makes_the_next_prompt_too_long_is_rejected(tmp_path: Path) -> None:
    tight = TALE.replace("{num_predict: 60}", "{num_predict: 60, num_ctx: 96}")
    kinds = write_kinds(tmp_path / "kinds", tale=tight)
    titles = iter(["a" * 300, "A fox", *["More than enough words for a tale."] * 9])
    with FaultServer(answer=lambda _: next(titles)) as server:
        result = fill(make_plan(kinds, "tale", count=1), tmp_path / "out", server)
    assert result.accepted == 1 and result.rejections == {"prompt_too_long": 1}


def test_of_near_duplicates_one_is_kept(tmp_path: Path) -> None:
    alike = re.sub(r"(?m)^output: .*$", "output: {prompts: [A tale.]}", TALE)
    kinds = write_kinds(tmp_path / "kinds", tale=alike)
    texts = iter(range(100))

    def copies(body: object) -> str:
        number = next(texts)
        return f"Title {number}" if "Name a" in str(body) else COPIED

    with FaultServer(answer=copies) as server:
        result = fill(make_plan(kinds, "tale", count=3), tmp_path / "out", server)
    assert (result.accepted, result.dropped) == (1, 2)
    assert result.rejections["near_duplicate"] + result.rejections["duplicate"] == 8


# An existing corpus.


def test_a_finished_plan_does_nothing_and_says_so(
    kinds: Path, whole: Whole, tmp_path: Path
) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in whole.out.iterdir()}
    result = fill(make_plan(kinds), whole.out)
    assert "Nothing to do." in str(result) and "complete" not in str(result)
    assert "1 items dropped" in str(result) and "--retry-dropped" in str(result)
    assert (result.from_model_now, result.written, result.removed) == (0, (), ())
    assert result.decided_now == ALL_SPELLINGS, "a program makes its records again"
    now = {"from_model_now": 0, "decided_now": 0, "written": ()}
    assert replace(result, **now) == replace(whole.result, **now)
    assert {path: path.stat().st_mtime_ns for path in whole.out.iterdir()} == stamps


def test_a_larger_count_asks_for_the_rest_alone(kinds: Path, tmp_path: Path) -> None:
    with llm() as server:
        fill(make_plan(kinds, "tale", count=3), tmp_path / "out", server)
        asked = len(server.asked)
        result = fill(make_plan(kinds, "tale", count=5), tmp_path / "out", server)
    assert result.decided_now == 2 and len(server.asked) > asked
    with llm() as server:
        fill(make_plan(kinds, "tale", count=5), tmp_path / "at once", server)
    assert content(tmp_path / "out") == content(tmp_path / "at once")


def test_a_changed_kind_is_made_again_and_reports_how_much(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, kinds = tmp_path / "out", write_kinds(tmp_path / "kinds", retold=RETOLD)
    with llm() as server:
        fill(make_plan(kinds), out, server)
    before, old = content(out), entries(out)
    accepted = sum(entry["status"] == "accepted" for entry in old)
    write_kinds(kinds, retold=RETOLD.replace("Retell:", "Say again:"))
    capsys.readouterr()
    with llm() as server:
        fill(make_plan(kinds), out, server)
    said = capsys.readouterr().err
    assert f"retold: its file or model has changed: 3 items to make; {accepted} records" in said
    assert "Retell:" not in content(out)["retold-01.md"]
    assert entries(out)[: len(old)] == old, "the journal keeps what was made"
    write_kinds(kinds, retold=RETOLD)
    fill(make_plan(kinds), out)  # no request: the journal has them
    assert {**content(out), JOURNAL: ""} == {**before, JOURNAL: ""}


def test_old_records_stay_until_there_is_a_new_one(tmp_path: Path) -> None:
    out, kinds = tmp_path / "out", write_kinds(tmp_path / "kinds", retold=RETOLD)
    with llm() as server:
        fill(make_plan(kinds), out, server)
    before = content(out)
    write_kinds(kinds, retold=RETOLD.replace("Retell:", "Say again:"))
    with llm("404") as server:
        result = fill(make_plan(kinds), out, server)
    assert result.failure is not None and result.removed == ()
    assert content(out) == before


def test_a_comment_or_a_larger_count_changes_no_record(tmp_path: Path) -> None:
    kinds = write_kinds(tmp_path / "kinds", spell=KINDS["spell"])
    fill(make_plan(kinds, count=5), tmp_path / "out")
    write_kinds(kinds, spell="# a remark\n" + KINDS["spell"].replace("count: 40", "count: 50"))
    result = fill(make_plan(kinds, count=5), tmp_path / "out")
    assert "Nothing to do" in str(result)


def test_another_model_makes_other_records(kinds: Path, tmp_path: Path) -> None:
    changed = replace(
        make_plan(kinds, "tale", count=2),
        recipes=tuple(recipe.with_model("other") for recipe in load_recipes(["tale"], [kinds])),
    )
    with llm(models=("tiny:latest", "other:latest")) as server:
        fill(make_plan(kinds, "tale", count=2), tmp_path / "out", server)
        fill(changed, tmp_path / "out", server)
    models = [entry["provenance"]["model"] for entry in entries(tmp_path / "out")]
    assert models == ["tiny", "tiny", "other", "other"]


def test_records_of_other_kinds_are_not_made_again(tmp_path: Path) -> None:
    kinds = write_kinds(tmp_path / "kinds", spell=KINDS["spell"], other=KINDS["spell"])
    fill(make_plan(kinds, "spell"), tmp_path / "out")
    fill(make_plan(kinds, "other"), tmp_path / "out")
    keys = [document.id for document in read_documents(tmp_path / "out")]
    assert len(set(keys)) == len(keys) > ALL_SPELLINGS
    assert {"spell-01.md", "other-01.md"} <= content(tmp_path / "out").keys()


def test_two_runs_do_not_fill_one_folder(kinds: Path, tmp_path: Path) -> None:
    with (
        corpus_lock(tmp_path / "out"),
        pytest.raises(UserError, match="is being filled by another process"),
    ):
        fill(make_plan(kinds, "spell"), tmp_path / "out")
    fill(make_plan(kinds, "spell"), tmp_path / "out")


# Progress and imports.


def test_without_a_terminal_there_are_lines(
    kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 0.0)
    with llm() as server:
        result = fill(make_plan(kinds, "tale", count=4), tmp_path / "out", server)
    shown = capsys.readouterr()
    last = shown.err.splitlines()[-1]
    assert last.startswith("item 4/4  ") and "records/s" in last and "0.0 min left" in last
    assert f"{result.accepted} accepted" in last and shown.out == ""
    for name, count in result.rejections.items():
        assert f"{name} {count}" in last


def test_on_a_terminal_there_is_a_bar(
    kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fill(make_plan(kinds, "spell"), tmp_path / "out")
    assert "40/40" in terminal.getvalue() and "accepted" in terminal.getvalue()


def test_a_program_needs_neither_torch_nor_a_client_of_ollama(kinds: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'httpx', 'ollama'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from ys_llm.gendata.command import GenerateRequest, make\n"
        "out, kinds = map(Path, sys.argv[1:])\n"
        "sys.exit(make(GenerateRequest(('spell',), out, seed=1, folders=(kinds,))))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out"), str(kinds)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    fill(make_plan(kinds, "spell"), tmp_path / "here")
    assert content(tmp_path / "out") == content(tmp_path / "here")


def test_a_sample_shows_records_and_verdicts_and_writes_nothing(
    kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with llm("good", "length") as server:
        shown = list(command.sample(["tale"], host=server.address, folders=[kinds]))
    assert len(shown) == 1 + command.DRY_RUN_PROMPTS
    recipe = load_recipes(["tale"], [kinds])[0]
    assert recipe.digest.startswith(shown[0].split("recipe ")[1].split(",")[0])
    verdicts = [text.rpartition("=> ")[2] for text in shown[1:]]
    assert any(verdict.startswith("accepted") for verdict in verdicts)
    assert sum(verdict.startswith("rejected, cut_off") for verdict in verdicts) >= 1
    assert not list(tmp_path.iterdir())
