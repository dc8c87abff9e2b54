"""Corpora from recipes: records whose answers are right by construction.

`generate` is the whole public face; `ys gen-data` calls it.
"""

from dataclasses import replace
from pathlib import Path

from ys_llm.gendata.recipe import load_recipe
from ys_llm.gendata.write import Summary, write_corpus

__all__ = ["Summary", "generate"]

DEFAULT_FOLDER = Path("training_data")


def generate(
    recipe_path: Path | None = None,
    out_dir: Path | None = None,
    *,
    seed: int | None = None,
    force: bool = False,
) -> Summary:
    """Write the corpus of a recipe (the built-in one if None) into a folder.

    Running it again gives the same bytes and so does nothing. Raises UserError for a recipe that
    cannot be read, and for files in the folder that somebody has edited, unless `force`.
    """
    recipe = load_recipe(recipe_path)
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    return write_corpus(recipe, out_dir or DEFAULT_FOLDER, force=force)
