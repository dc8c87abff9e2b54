"""A real language model behind ollama's protocol, asked through the real client.

No ollama runs here: `smollm_server.py` speaks its protocol. The last test goes the whole way, by
the commands that a user types: generate and be killed, go on, curate, train, complete.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.forked import Ended, ForkServer, until
from support.gendata_runs import entries, write_kinds
from support.smollm_server import NAME, VERSION, missing, smollm_server
from support.training_runs import ROOT, column, settings

from ys_llm.data.readers import read_documents
from ys_llm.gendata.backends.chat import ChatRequest
from ys_llm.gendata.backends.failures import StoppedError
from ys_llm.gendata.backends.ollama import Ollama
from ys_llm.gendata.command import DEFAULT_SEED
from ys_llm.gendata.generation.journal import NAME as JOURNAL
from ys_llm.gendata.recipes.items import plan_items
from ys_llm.gendata.recipes.load import load_recipes
from ys_llm.runs.model_files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

OPTIONS = {"temperature": 0.9, "top_k": 40, "num_predict": 24, "num_ctx": 1024}
PROMPTS = (
    "Tell me a very short story about a fox.",
    "Explain to a child what rain is.",
    "Write one sentence about bread.",
)
SCHEMA = {
    "type": "object",
    "properties": {
        "question": {"type": "string", "maxLength": 60},
        "answer": {"type": "string", "maxLength": 30},
    },
    "required": ["question", "answer"],
    "additionalProperties": False,
}


# Short answers: the model writes 25 tokens a second, and reads a story in 4 seconds.
KINDS = {
    "sentence": """\
description: sentences about things
slots: {thing: [a fox, bread, the sea, a clock, snow, an apple tree, a train, a lamp, rain, a dog]}
ask: [{prompts: ["Write one short sentence about {thing}."], sampling: {num_predict: 50}}]
output: {prompts: ["A sentence about {thing}.", "Say something about {thing}."]}
verifiers: {words: {least: 3, most: 45}}
count: 9
""",
    "child": """\
description: things readable_os_errors to a child
slots: {thing: [rain, fire, a bee, the moon, ice, a bridge, wind, a seed, sleep, money]}
ask:
  - {prompts: ["Tell a child in one short sentence what {thing} is."], sampling: {num_predict: 60}}
output: {prompts: ["What is {thing}?"]}
verifiers: {words: {least: 4, most: 55}}
count: 9
""",
    "title": """\
description: titles for stories, one line
slots: {who: [a baker, a queen, a crow, a sailor, twins], where: [in a tower, at sea, in the snow]}
ask:
  - prompts: ["Invent one title for a story about {who} {where}. Answer with the title alone."]
    take: line
    sampling: {num_predict: 30}
output: {prompts: ["A title for a story about {who} {where}?"]}
rules: []
verifiers: {words: {least: 1, most: 25}, lines: {least: 1, most: 1}}
count: 9
""",
    "question": """\
description: a question is asked for first, then its answer
slots: {topic: [cooking, weather, gardens, boats, cats, school, shoes, winter, music, trees]}
ask:
  - name: question
    prompts: ["Write one short question about {topic}. Answer with the question alone."]
    take: line
    sampling: {num_predict: 40}
  - {prompts: ["{question} Answer in one short sentence."], sampling: {num_predict: 60}}
output: {prompts: ["{question}"]}
verifiers: {question: {words: 40}, words: {least: 2, most: 60}}
count: 9
""",
    "gist": """\
description: what a story that a program tells is about
backend: chain
program: story
ask:
  - prompts: ["{story}\\n\\nSay in one short sentence what {hero} does. Begin: {hero}"]
    sampling: {num_predict: 60}
output: {prompts: ["{story}\\n\\nWhat does {hero} do?"]}
verifiers: {words: {least: 3, most: 60}, mentions: {names: [hero]}}
count: 3
""",
}
JOKES = 9  # of one of the project's own kinds
MOST_SECONDS = 300.0  # for what takes one and a half minutes on an idle core


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with smollm_server() as address:
        yield address


@pytest.fixture(scope="module")
def llm(address: str) -> Ollama:
    """The back end, with deadlines for a machine that has other work."""
    return Ollama(address, first_seconds=120.0, stall_seconds=60.0, total_seconds=300.0)


def question(prompt: str, seed: int) -> ChatRequest:
    return ChatRequest(NAME, prompt, options={**OPTIONS, "seed": seed})


def test_it_is_checked(llm: Ollama) -> None:
    found = llm.check(NAME)
    assert found.failure is None
    assert found.version == VERSION
    assert found.sample is not None and found.sample.eval_count > 3


def test_it_answers_three_prompts_with_words(llm: Ollama) -> None:
    answers = [llm.ask(question(prompt, seed=1)) for prompt in PROMPTS]
    assert len({answer.text for answer in answers}) == len(PROMPTS)
    for answer in answers:
        assert len(answer.text.split()) >= 5
        assert answer.done_reason in ("stop", "length")
        assert 0 < answer.eval_count <= OPTIONS["num_predict"]
        assert len(answer.model_digest) == 64


def test_the_same_seed_gives_the_same_text_and_other_seeds_others(llm: Ollama) -> None:
    texts = [llm.ask(question(PROMPTS[0], seed)).text for seed in (5, 6, 5, 7)]
    assert texts[0] == texts[2]
    assert len(set(texts)) == 3


def test_num_predict_cuts_the_answer_and_is_reported(llm: Ollama) -> None:
    options = {**OPTIONS, "seed": 1, "num_predict": 8}
    answer = llm.ask(ChatRequest(NAME, "Count from one to one hundred in words.", options=options))
    assert (answer.done_reason, answer.eval_count <= 8) == ("length", True)


def test_a_schema_is_obeyed(llm: Ollama) -> None:
    prompt = "Write a quiz question about animals and its answer, as JSON."
    options = {**OPTIONS, "seed": 2, "num_predict": 120}
    answer = llm.ask(ChatRequest(NAME, prompt, options=options, format=SCHEMA))
    found = json.loads(answer.text)
    assert set(found) == {"question", "answer"}
    assert all(isinstance(value, str) for value in found.values())


def test_a_stop_closes_the_request_and_the_next_one_is_answered(llm: Ollama) -> None:
    stop = threading.Event()
    options = {**OPTIONS, "seed": 3, "num_predict": 1500, "num_ctx": 2048}
    endless = ChatRequest(NAME, "Write a long story about a sea voyage.", options=options)
    with ThreadPoolExecutor(1) as asking:
        future = asking.submit(llm.ask, endless, stop.is_set)
        time.sleep(2.0)
        assert not future.done(), future.result()
        began = time.monotonic()
        stop.set()
        with pytest.raises(StoppedError):
            future.result(timeout=10)
        assert time.monotonic() - began < 1.0
    # The server serves one at a time: were the first request still running, this would wait for it.
    next_one = llm.ask(question(PROMPTS[2], seed=1))
    assert next_one.text == llm.ask(question(PROMPTS[2], seed=1)).text


class Home:
    """A user's folder: kinds in it, commands typed in it."""

    def __init__(self, folder: Path, forks: ForkServer, address: str) -> None:
        self.folder, self.corpus, self._forks = folder, folder / "made", forks
        self.kinds = folder / "gen/kinds"
        jokes = (ROOT / "configs/gen/kinds/jokes.yaml").read_text(encoding="utf-8")
        jokes = re.sub(r"^count: \d+$", f"count: {JOKES}", jokes, flags=re.MULTILINE)
        write_kinds(self.kinds, **KINDS, jokes=jokes)
        names = ",".join(sorted(path.stem for path in self.kinds.iterdir()))
        self.make = ["gen-data", "--kind", names, "--out", "made", "--model", NAME]
        self.make += ["--host", address]

    def ys(self, *words: str) -> Ended:
        child = self._forks.start(*words, folder=self.folder)
        ended = child.wait(seconds=MOST_SECONDS)
        assert ended.code == 0, ended.stderr
        return ended

    def journal(self) -> list[bytes]:
        """The complete lines of the journal: answers and decisions."""
        path = self.corpus / JOURNAL
        return path.read_bytes().splitlines(keepends=True) if path.exists() else []

    def kill_at(self, n_lines: int) -> None:
        """Generate until the journal has so many lines, and kill."""
        child = self._forks.start(*self.make, folder=self.folder)
        until(lambda: len(self.journal()) >= n_lines, seconds=MOST_SECONDS)
        child.send(signal.SIGKILL)
        assert child.wait().code == -signal.SIGKILL

    def planned(self) -> list[str]:
        """The key of every item, by kind and number."""
        kinds = load_recipes([path.stem for path in self.kinds.iterdir()], [self.kinds])
        asked = [kind.with_model(NAME) for kind in kinds]
        return [item.key for kind in asked for item in plan_items(kind, seed=DEFAULT_SEED)]


@pytest.fixture
def home(tmp_path: Path, forks: ForkServer, address: str) -> Home:
    return Home(tmp_path, forks, address)


def train(home: Home, corpus: str, run: str, *changes: str) -> Path:
    chosen = settings(Path(corpus), (f"run={run}", "train.learning_rate=1e-2", *changes))
    home.ys("train", *(word for one in chosen for word in ("--set", one)))
    return home.folder / "runs" / run


def test_from_a_model_killed_twice_to_a_model_that_completes(home: Home) -> None:
    kept: list[bytes] = []
    for n_lines in (10, 25):
        home.kill_at(n_lines)
        assert home.journal()[: len(kept)] == kept
        kept = home.journal()[:n_lines]
    shown = home.ys(*home.make).stdout
    assert home.journal()[: len(kept)] == kept

    lines = entries(home.corpus)
    assert sorted(line["key"] for line in lines) == sorted(home.planned()), (
        "an item is missing, or was made twice"
    )
    accepted = [line for line in lines if line["status"] == "accepted"]
    documents = read_documents(home.corpus)
    assert len(accepted) == len(documents) == len({document.id for document in documents}) >= 40
    assert {line["kind"] for line in accepted} == {"jokes", *KINDS}
    assert f"made: {len(accepted)} records of {len(lines)} items" in shown
    assert "Nothing to do." in home.ys(*home.make).stdout
    text = documents[0].text.strip()
    assert f"model     {NAME}" in home.ys("gen-data", "trace", text, "--data", "made").stdout

    home.ys("gen-data", "curate", "made", "--out", "clean")
    clean = {document.id for document in read_documents(home.folder / "clean")}
    assert clean <= {document.id for document in documents}, "generated records are curated already"
    assert len(clean) >= 0.9 * len(documents)

    run = train(home, "clean", "small", "train.max_steps=100")
    losses = column(run, "loss")
    assert len(losses) == 100 and sum(losses[-10:]) < 0.8 * sum(losses[:10])
    written = home.ys("run", "small", "--prompt", "What is rain?", "--max-tokens", "20")
    assert written.stdout.strip()

    known = train(home, "made", "known", "train.max_steps=1", "data.validation_fraction=0")
    sources = read_json(known / "config.json")["sources"]
    assert {source["kind"]: source["records"] for source in sources} == Counter(
        line["kind"] for line in accepted
    )
    assert {source["model"] for source in sources} == {NAME}
    assert NAME in (known / "README.md").read_text(encoding="utf-8")
