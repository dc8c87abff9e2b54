"""A run's model card: README.md, for people and for hubs."""

from collections.abc import Mapping, Sequence
from typing import Any

from ys_llm import __version__
from ys_llm.config.schema import Config
from ys_llm.errors import command_line

_SHOWN_DIGITS = 12  # of a digest


def model_card(config: Config, described: Mapping[str, Any]) -> str:
    """The card of a model, as Markdown; `described` is the content of its config.json."""
    facts = {k: described[k] for k in ("parameters", "step", "tokens", "val_bits_per_byte")}
    rows = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in facts.items())
    tags = ", ".join(["text-generation", *dict.fromkeys(config.model.layers)])
    return (
        f"---\nlibrary_name: ys-llm\ntags: [{tags}]\n---\n\n"
        f"# {config.run}\n\nA small language model trained by ys {__version__} on "
        f"`{config.data.path}`. Use it with `{command_line('run', config.run)}`.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n{_sources(config, described.get('sources', ()))}"
        "How it was trained: `config.yaml` and `metrics.jsonl`.\n"
    )


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
