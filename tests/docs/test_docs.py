"""Runs what README.md and docs/*.md claim; tests the machinery that does so on small texts."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from support import doc_claims as claims
from support.forked_shell import forked_ys

from ys_llm.config.schema import Config
from ys_llm.config.sources import to_yaml
from ys_llm.model.language_model import Model

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
ALL_TEXT = "\n".join(PAGES.values())
SKIPPED = [
    (page, block)
    for page, text in PAGES.items()
    for block in claims.console_blocks(text)
    if block.skipped
]
FAST_SECONDS, SLOW_SECONDS = 120, 1800
every_page = pytest.mark.parametrize("page", PAGES)


def session_parameters():
    return [
        pytest.param(
            page,
            blocks,
            id=f"{page}-{name}",
            marks=[pytest.mark.slow] if claims.is_slow(blocks) else [],
        )
        for page, text in PAGES.items()
        for name, blocks in claims.sessions(text).items()
    ]


def run_text(text, folder):
    blocks = [block for group in claims.sessions(text).values() for block in group]
    return claims.session_problem("page.md", blocks, folder, timeout_seconds=20)


def test_ys_is_installed_beside_this_python():
    code, shown = claims.run_shell("ys --version", ROOT, timeout_seconds=30)
    assert code == 0, f"install the project first: pip install -e . -c constraints.txt\n{shown}"


@every_page
def test_every_console_block_is_marked(page):
    assert claims.form_problems(PAGES[page]) == []


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with forked_ys(tmp_path_factory.mktemp("commands"), claims.shell_environment()) as folder:
        yield folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return tmp_path_factory.mktemp("empty")


@pytest.mark.parametrize(("page", "blocks"), session_parameters())
def test_commands_do_what_the_page_shows(page, blocks, tmp_path, commands):
    claims.copy_project(ROOT, tmp_path)
    seconds = SLOW_SECONDS if claims.is_slow(blocks) else FAST_SECONDS
    how = {"timeout_seconds": seconds, "commands": None if claims.is_slow(blocks) else commands}
    assert claims.session_problem(page, blocks, tmp_path, **how) == ""


@pytest.mark.parametrize(
    ("page", "block"), SKIPPED, ids=[f"{page}-line-{block.line}" for page, block in SKIPPED]
)
def test_blocks_that_are_not_run_are_named_in_the_summary(page, block):
    pytest.skip(f"{page}:{block.line} not run: {block.name.removeprefix('skip ')}")


@every_page
def test_every_flag_on_a_page_is_in_the_help(page, empty, commands):
    assert claims.help_problems(PAGES[page], empty, commands=commands) == []


def test_the_tables_of_options_show_the_real_defaults():
    assert claims.option_rows(ALL_TEXT), "no page has a table of options"
    assert claims.option_problems(ALL_TEXT) == []


@every_page
def test_parameter_counts_are_those_of_the_real_models(page):
    assert claims.count_problems(PAGES[page], ROOT) == []


@every_page
def test_links_and_paths_lead_somewhere(page):
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", PAGES[page])
    missing = [link for link in links if not (folder / link).exists()]
    assert not missing, f"{page} links to {missing}"


# The machinery itself.

SESSION = """
<!-- check: greeting -->
```console
$ printf 'one\\n2.5 s\\nthree\\n' > said && cat said
one
... s
three

$ cat \\
  said missing  # exit 1
...
three
cat: missing: No such file or directory
```

<!-- check: greeting -->

```console
$ wc -l < said
3
```
"""


def test_a_right_session_passes_and_its_blocks_share_a_folder(tmp_path):
    assert claims.form_problems(SESSION) == []
    assert run_text(SESSION, tmp_path) == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("\none\n", "\nOne\n"),
        ("... s\n", "... m\n"),
        ("\nthree\n\n", "\n\n"),
        ("# exit 1", "# exit 2"),
        ("  # exit 1", ""),
        ("\n3\n", "\n4\n"),
        ("\n3\n", "\n3\n4\n"),
    ],
)
def test_a_wrong_session_fails(tmp_path, right, wrong):
    assert right in SESSION
    assert "--- shown" in run_text(SESSION.replace(right, wrong, 1), tmp_path)


def test_a_failure_names_the_line_of_the_command(tmp_path):
    problem = run_text(SESSION.replace("\n3\n", "\n4\n"), tmp_path)
    line = int(problem.split(":")[1])
    assert SESSION.splitlines()[line - 1] == "$ wc -l < said"


@pytest.mark.parametrize(
    ("expected", "actual", "matches"),
    [
        (["..."], "", True),
        (["..."], "a\nb\n", True),
        (["a", "...", "d"], "a\nb\nc\nd\n", True),
        (["a", "...", "d"], "a\nb\nc\n", False),
        (["loss ... nats"], "loss 1.25 nats\n", True),
        (["loss ... nats"], "loss 1.25\nnats\n", False),
        (["a.c"], "abc\n", False),
        ([], "surprise\n", False),
    ],
)
def test_dots_stand_for_what_depends_on_timing_and_for_nothing_else(expected, actual, matches):
    assert claims.output_matches(expected, actual) is matches


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```console\n$ true\n```", "no <!-- check: NAME -->"),
        ("<!-- check: a -->\n\nwords\n\n```console\n$ true\n```", "no <!-- check: NAME -->"),
        ("<!-- check: skip -->\n```console\n$ true\n```", "skip needs a reason"),
        ("<!-- check: a -->\n```console\ntrue\n```", "no `$ command`"),
        ("```sh\ntrue\n```", "must be ```console"),
        ("```text\n$ true\n```", "must be ```console"),
        ("<!-- check: a -->\nwords", "does not stand right before"),
        ("<!-- count: x.yaml -->12<!-- /count -->", "a count is not"),
    ],
)
def test_a_claim_that_would_not_be_checked_is_a_problem(text, problem):
    assert any(problem in found for found in claims.form_problems(text))


def test_skipped_and_slow_blocks_are_told_apart():
    text = (
        "<!-- check: skip needs a network -->\n```console\n$ false\n```\n"
        "<!-- check-slow: train -->\n```console\n$ true\n```\n"
    )
    assert claims.form_problems(text) == []
    assert [block.name for block in claims.console_blocks(text) if block.skipped] == [
        "skip needs a network"
    ]
    named = claims.sessions(text)
    assert list(named) == ["train"]
    assert claims.is_slow(named["train"])


def test_commands_are_found_in_sentences_pipes_and_blocks():
    text = (
        "Type `ys train [clean [all]] [--config FILE]`, not `yes` or `notes ys`.\n"
        "<!-- check: a -->\n```console\n$ YS_TRAIN__SEED=1 ys run a --seed 3 > out; cat out |"
        " ys run --json # ys none --x\nys is output\n```\n"
    )
    assert claims.mentioned_commands(text) == [
        ["ys", "train", "clean", "all", "--config", "FILE"],
        ["ys", "run", "a", "--seed", "3"],
        ["ys", "run", "--json"],
    ]


def test_flags_and_verbs_that_do_not_exist_are_found(empty):
    assert claims.help_problems("`ys train --config FILE`", empty) == []
    assert claims.help_problems("`ys train --confg FILE`", empty) == ["ys train knows no --confg"]
    assert "ys trian --help" in claims.help_problems("`ys trian --config FILE`", empty)[0]


def test_rows_of_options_are_held_against_the_defaults():
    seed, rate = Config().train.seed, Config().train.learning_rate
    right = f"| `train.seed` | {seed} | a |\n| `train.learning_rate` | `{rate:e}` | b |\n"
    assert len(claims.option_rows(right)) == 2
    assert claims.option_problems(right) == []
    assert "train.seed" in claims.option_problems(f"| `train.seed` | {seed + 1} | a |")[0]
    assert "train.sed is no option" in claims.option_problems("| `train.sed` | 1 | a |")


def test_every_default_can_be_written_in_a_table():
    for name, value in claims.default_values().items():
        cell = '""' if value == "" else "null" if value is None else str(value)
        cell = cell.lower() if isinstance(value, bool) else cell
        assert claims.same_value(cell, value), name


def test_counts_are_held_against_the_model(tmp_path):
    config = dataclasses.replace(Config().model, d_model=64, n_layers=1, d_mlp=64)
    small = dataclasses.replace(Config(), model=config)
    (tmp_path / "x.yaml").write_text(to_yaml(small), encoding="utf-8")
    with torch.device("meta"):
        real = sum(p.numel() for p in Model(small.model, vocab_size=100).parameters())
    claim = "<!-- count: x.yaml vocab=100 -->{:,}<!-- /count -->"
    assert claims.count_problems(claim.format(real), tmp_path) == []
    assert f"has {real:,} parameters" in claims.count_problems(claim.format(real + 1), tmp_path)[0]
