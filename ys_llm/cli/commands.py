"""What each verb of `ys` does with the words it was given; `cli.py` says which words there are.

What a verb needs is imported when it runs, so that each works without the libraries of the others.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ys_llm.errors import EXIT_FAILED, EXIT_USAGE, UserError

if TYPE_CHECKING:
    from ys_llm.config.schema import GenerateConfig
    from ys_llm.config.sources import Resolved
    from ys_llm.runs.checkpoint import LoadedRun
    from ys_llm.runs.folder import CleanScope

RUNS_DIR = Path("runs")
_MOST_PROCESSES = 8  # for curation
_DATA_ACTIONS = {"curate": 1, "explain": 2, "trace": 1}  # words that follow
_CLEAN: Mapping[str, CleanScope | None] = {"": None, "clean": "model", "clean all": "all"}


def _resolve(arguments: argparse.Namespace) -> Resolved:
    from ys_llm.config.sources import load_config

    overrides = [*arguments.set, *_override("data.path", arguments.data)]
    overrides += _override("run", arguments.run)
    resolved = load_config(arguments.config, overrides=overrides, environment=os.environ)
    for warning in resolved.warnings:
        print(f"ys: {warning}", file=sys.stderr)
    saved = RUNS_DIR / resolved.config.run / "config.yaml"
    if arguments.config is None and saved.exists():
        return load_config(saved, overrides=overrides, environment=os.environ)
    return resolved


def _override(name: str, value: str | None) -> list[str]:
    from ys_llm.config.yaml_io import dump_inline

    return [] if value is None else [f"{name}={dump_inline(value)}"]


def train(arguments: argparse.Namespace) -> int:
    """`ys train`: clean, forecast, or train."""
    words = " ".join(arguments.words)
    if words not in _CLEAN:
        arguments.usage_error(f"expected nothing, `clean` or `clean all`, found `{words}`")
    _check_train_flags(arguments, words)
    resolved = _resolve_new(arguments) if arguments.new_data is not None else _resolve(arguments)
    run, corpus = RUNS_DIR / resolved.config.run, Path(resolved.config.data.path)
    what = _CLEAN[words]
    if what and not _clean(run, what, corpus=corpus, arguments=arguments):
        return EXIT_FAILED
    if arguments.dry_run:
        return 0 if what else _show_dry_run(resolved)
    if resolved.config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by cuBLAS
    from ys_llm.training.loop import train

    train(resolved, runs_dir=RUNS_DIR, from_step=arguments.from_step)
    return 0


def _check_train_flags(arguments: argparse.Namespace, words: str) -> None:
    error = arguments.usage_error
    if arguments.from_step is not None and arguments.from_step < 0:
        error(f"--from must be at least 0, found {arguments.from_step}")
    if words and (arguments.from_step is not None or arguments.new_data is not None):
        error(f"`{words}` removes the checkpoints that --from and --new-data go on from")
    if arguments.new_data is not None and (arguments.config or arguments.data):
        error("--new-data takes the configuration of the run it goes on with; use --set to change")


def _resolve_new(arguments: argparse.Namespace) -> Resolved:
    """The run that --new-data asks for: another one, which begins with this one's weights."""
    from ys_llm.config.sources import load_config
    from ys_llm.runs.folder import find_run

    source = find_run(RUNS_DIR, arguments.run)
    slug = re.sub(r"[^\w.-]+", "-", Path(arguments.new_data).absolute().stem).strip("-.")
    name = f"{source.name}-{slug}"
    init_from = source.name if source.parent == RUNS_DIR else str(source.absolute())
    overrides = [*arguments.set, *_override("data.path", arguments.new_data)]
    overrides += [*_override("run", name), *_override("train.init_from", init_from)]
    saved = RUNS_DIR / name / "config.yaml"
    file = saved if saved.exists() else source / "config.yaml"
    return load_config(file, overrides=overrides, environment=os.environ)


def _show_dry_run(resolved: Resolved) -> int:
    from ys_llm.training.forecast import dry_run

    print(dry_run(resolved, runs_dir=RUNS_DIR))
    return 0


def _clean(run: Path, what: CleanScope, *, corpus: Path, arguments: argparse.Namespace) -> bool:
    """List what goes, ask, and remove it; whether it was done."""
    from ys_llm.runs.folder import list_removals, locked, remove

    doomed = list_removals(run, what, corpus=corpus)
    shown = sys.stdout if arguments.dry_run else sys.stderr
    for item in doomed:
        name = f"{item.path}{'/' if item.path.is_dir() else ''}"
        verb = "would remove" if arguments.dry_run else "removing"
        print(f"{verb} {name}, {_size(item.bytes)}", file=shown)
    if len(doomed) > 1:
        print(f"in all {_size(sum(item.bytes for item in doomed))}", file=shown)
    if arguments.dry_run or not doomed:
        return True
    with locked(run):
        if not arguments.yes and not _confirmed(arguments):
            print("nothing was removed", file=sys.stderr)
            return False
        remove(doomed)
    return True


def _size(n_bytes: int) -> str:
    if n_bytes < 1_000_000:
        return f"{n_bytes / 1e3:,.1f} kB"
    return f"{n_bytes / 1e6:,.1f} MB"


def _confirmed(arguments: argparse.Namespace) -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        raise UserError(
            "there is no terminal to ask at, and nothing was removed",
            f"To remove these all the same, type: ys train {' '.join(arguments.words)} --yes",
            exit_code=EXIT_USAGE,
        )
    print("Remove these and train anew? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def run(arguments: argparse.Namespace) -> int:
    """`ys run`: one completion, or a conversation."""
    if arguments.logprobs < 0:
        arguments.usage_error(f"--logprobs must be at least 0, found {arguments.logprobs}")
    if arguments.logprobs and not arguments.json:
        arguments.usage_error("--logprobs needs --json")
    if arguments.prompts is not None and (arguments.prompt is not None or arguments.json):
        arguments.usage_error("--prompts prints JSON of its own; leave out --prompt and --json")
    prompt = None if arguments.prompts else _prompt(arguments)
    from ys_llm.inference.repl import run_batch, run_interactive, run_once

    loaded = _loaded(arguments)
    sampling = _sampling(arguments, loaded.config.generate)
    if arguments.prompts:
        run_batch(loaded, _lines_of(arguments.prompts), sampling, plain=arguments.plain)
    elif prompt is None:
        run_interactive(loaded, sampling, plain=arguments.plain)
    else:
        run_once(
            loaded,
            prompt,
            sampling,
            as_json=arguments.json,
            logprobs=arguments.logprobs,
            plain=arguments.plain,
        )
    return 0


def _loaded(arguments: argparse.Namespace) -> LoadedRun:
    """The run that is named, its weights rounded as --weights says."""
    from ys_llm.model.quantize import quantize_linears
    from ys_llm.runs.checkpoint import load_run
    from ys_llm.runs.folder import find_run

    loaded = load_run(find_run(RUNS_DIR, arguments.name))
    quantize_linears(loaded.model, arguments.weights)
    return loaded


def _lines_of(path: Path) -> Iterator[str]:
    """The lines of a file that hold something, without their line breaks."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from (line.rstrip("\r\n") for line in file if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text", "Convert it, as with iconv.") from error


def _sampling(arguments: argparse.Namespace, saved: GenerateConfig) -> GenerateConfig:
    from dataclasses import asdict

    from ys_llm.config.schema import GenerateConfig
    from ys_llm.config.strict_reader import parse_dataclass

    values = asdict(saved)
    given = {name: getattr(arguments, name) for name in values}
    values.update({name: value for name, value in given.items() if value is not None})
    return parse_dataclass(GenerateConfig, values, where="ys run")


def _prompt(arguments: argparse.Namespace) -> str | Iterable[str] | None:
    """--prompt, else what stdin holds; None where somebody sits at a terminal."""
    text: str | None = arguments.prompt
    if text is not None and text.encode(errors="ignore").decode() != text:
        raise UserError("--prompt is not UTF-8 text", "Convert it.", exit_code=EXIT_USAGE)
    if text is not None:
        return text
    if sys.stdin is None:
        fix = "Type: ys run --prompt TEXT"
        raise UserError("stdin is closed, and no prompt is given", fix, exit_code=EXIT_USAGE)
    if not sys.stdin.isatty():
        return _text_of_stdin()
    if arguments.json:
        arguments.usage_error("--json needs --prompt, or a text on stdin")
    return None


def _text_of_stdin() -> Iterator[str]:
    """Pieces of bounded size, whatever the length, without the last line break."""
    from ys_llm.inference.repl import pieces_of

    # No translation of line breaks: the model is to read exactly what was sent.
    sys.stdin.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
    held = ""
    try:
        for piece in pieces_of(sys.stdin):
            text = held + piece
            body = text.removesuffix("\n").removesuffix("\r")
            held = text[len(body) :]
            yield body
    except UnicodeDecodeError as error:
        raise UserError("the text on stdin is not UTF-8", "Convert it, as with iconv.") from error
    if held not in ("", "\n", "\r\n"):
        yield held


def evaluate(arguments: argparse.Namespace) -> int:
    """`ys eval`: a table, or JSON."""
    from dataclasses import asdict

    from ys_llm.evaluation.bits_per_byte import evaluate_paths, positions_of_paths

    loaded = _loaded(arguments)
    if arguments.by_position:
        positions = positions_of_paths(loaded, arguments.paths)
        rows = [{"path": path, **asdict(row)} for path, row in positions]
    else:
        rows = [
            {"path": row.path, "documents": row.documents, **asdict(row.result)}
            for row in evaluate_paths(loaded, arguments.paths)
        ]
    if arguments.json:
        import json

        print(json.dumps(rows, ensure_ascii=False))
    else:
        print(_table(rows))
    return 0


def _table(rows: Sequence[dict[str, Any]]) -> str:
    header = [name.replace("_", " ") for name in rows[0]]
    lines = [header, *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        [cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    )
    return "\n".join("  ".join(line) for line in padded)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def gen_data(arguments: argparse.Namespace) -> int:
    """`ys gen-data`: what its first word or its flags ask for."""
    action, *rest = arguments.words or [""]
    names = [name.strip() for name in (arguments.kind or "").split(",") if name.strip()]
    if action in _DATA_ACTIONS:
        return _on_corpus(arguments, action, rest)
    if action:
        arguments.usage_error(
            f"expected curate, explain or trace, found `{action}`; what to make is said by --kind"
        )
    if arguments.kind is not None and not names:
        arguments.usage_error("--kind names no kind; --list shows them")
    if any(number is not None and number < 1 for number in (arguments.workers, arguments.count)):
        arguments.usage_error("--workers and --count must be at least 1")
    from ys_llm.gendata import command

    host = os.environ.get("OLLAMA_HOST", "") if arguments.host is None else arguments.host
    if arguments.list:
        print(command.list_kinds())
    elif arguments.check:
        models = [arguments.model] if arguments.model else command.models_of(names)
        said, code = command.check(host, models)
        print(said)
        return code
    else:
        return _make_kinds(arguments, names, host)
    return 0


def _make_kinds(arguments: argparse.Namespace, names: list[str], host: str) -> int:
    from ys_llm.gendata import command

    seed = command.DEFAULT_SEED if arguments.seed is None else arguments.seed
    if arguments.dry_run:
        print(command.dry_run(names, seed=seed, model=arguments.model))
        return 0
    wanted = command.Wanted(
        tuple(names),
        arguments.out or command.DEFAULT_OUT,
        count=arguments.count,
        seed=seed,
        model=arguments.model,
        host=host,
        workers=arguments.workers or 1,
        force=arguments.force,
    )
    return command.make(wanted)


def _on_corpus(arguments: argparse.Namespace, action: str, rest: list[str]) -> int:
    """`curate`, `explain` and `trace`: what is done to a corpus that is there."""
    if len(rest) != _DATA_ACTIONS[action]:
        arguments.usage_error("expected curate PATH, explain PATH RECORD or trace TEXT")
    from ys_llm.gendata import command

    rules, code = arguments.rules.split(","), 0
    if action == "curate":
        if arguments.out is None:
            arguments.usage_error("curate needs --out DIR")
        workers = arguments.workers or min(os.cpu_count() or 1, _MOST_PROCESSES)
        said = command.curate(Path(rest[0]), arguments.out, rules=rules, workers=workers)
    elif action == "explain":
        said = command.explain(Path(rest[0]), rest[1], rules=rules)
    else:
        said, code = command.trace(rest[0], arguments.data or command.DEFAULT_OUT)
    print(said)
    return code


def config_show(arguments: argparse.Namespace) -> int:
    """`ys config show`."""
    from ys_llm.config.sources import annotated_yaml

    print(annotated_yaml(_resolve(arguments)), end="")
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """`ys doctor`."""
    from ys_llm.doctor import doctor

    print(doctor(os.environ, runs_dir=RUNS_DIR))
    return 0
