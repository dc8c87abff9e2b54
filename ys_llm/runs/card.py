"""A run's model card: README.md, for people and for hubs."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ys_llm import __version__
from ys_llm.config.schema import Config
from ys_llm.config.yaml_io import dump_yaml
from ys_llm.errors import command_line

_SHOWN_DIGITS = 12  # of a digest
_NOT_IN_NAMES = re.compile(r"[^\w.-]+")


def model_card(config: Config, described: Mapping[str, Any]) -> str:
    """The card of a model, as Markdown; `described` is the content of its config.json.

    It begins with what hubs read, in YAML. Licence and language are claimed only for text that
    programs of ys wrote: of other text nobody has said them.
    """
    facts = {k: described[k] for k in ("parameters", "step", "tokens", "val_bits_per_byte")}
    if base := described.get("base"):
        digest = base["sha256"][:_SHOWN_DIGITS]
        facts["fine-tuned from"] = f"{base['run']}, step {base['step']}, SHA-256 {digest}"
    rows = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in facts.items())
    return (
        f"---\n{dump_yaml(_front_matter(config, described))}---\n\n"
        f"# {config.run}\n\nA small language model trained by ys {__version__} on "
        f"`{config.data.path}`. Use it with `{command_line('run', config.run)}`.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n{_sources(config, described.get('sources', ()))}"
        "How it was trained: `report.html`, `config.yaml` and `metrics.jsonl`.\n"
    )


def _front_matter(config: Config, described: Mapping[str, Any]) -> dict[str, Any]:
    by_programs = _is_by_programs(described.get("sources", ()))
    dataset = _NOT_IN_NAMES.sub("-", Path(config.data.path).absolute().name) or "text"
    found: dict[str, Any] = {
        "license": "mit" if by_programs else "unknown",
        "language": ["en" if by_programs else "und"],
        "library_name": "ys-llm",
        "pipeline_tag": "text-generation",
        "tags": ["text-generation", "recurrent", *dict.fromkeys(config.model.layers)],
        "datasets": [dataset],
    }
    if config.train.init_from:
        found["base_model"] = config.train.init_from
    if described["val_bits_per_byte"] is not None:
        found["model-index"] = _results(config.run, dataset, described["val_bits_per_byte"])
    return found


def _is_by_programs(sources: Sequence[Mapping[str, Any]]) -> bool:
    """Whether programs of ys wrote all documents; their text is English, and as free as ys."""
    return bool(sources) and all(one["kind"] and not one["model"] for one in sources)


def _results(run: str, dataset: str, bits_per_byte: float) -> list[dict[str, Any]]:
    """The result in the form that hubs show."""
    metric = {"type": "bits_per_byte", "name": "bits per byte, held out", "value": bits_per_byte}
    result = {
        "task": {"type": "text-generation"},
        "dataset": {"type": dataset, "name": dataset},
        "metrics": [metric],
    }
    return [{"name": run, "results": [result]}]


def _sources(config: Config, sources: Sequence[Mapping[str, Any]]) -> str:
    """The card's table of training documents by source; "" without a manifest."""
    if not sources:
        return ""
    rows = "".join(
        f"| {source['kind'] or 'unknown'} | {source['records']:,} | {_writer(source)} "
        f"| {source['recipe'][:_SHOWN_DIGITS]} |\n"
        for source in sources
    )
    before = config.train.init_from
    return (
        "## Training data\n\nThe documents it was trained on, by what wrote them, according to "
        "`MANIFEST.jsonl` of the corpus."
        + (f" It started from the weights of `{before}`: see its card." if before else "")
        + f"\n\n| kind | records | written by | recipe |\n|---|---|---|---|\n{rows}\n"
    )


def _writer(source: Mapping[str, Any]) -> str:
    if not source["kind"]:
        return "not in the manifest, or changed since"
    if not source["model"]:
        return "a program"
    digest = source["model_digest"][:_SHOWN_DIGITS]
    return f"{source['model']}, digest {digest}" if digest else source["model"]
