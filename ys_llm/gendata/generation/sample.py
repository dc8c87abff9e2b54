"""What a recipe would make: a few records with their verdicts, before anything is written."""

from collections.abc import Iterator, Sequence

from ys_llm.gendata.generation.attempts import Ask, Attempt, attempt
from ys_llm.gendata.recipes.items import item_at
from ys_llm.gendata.recipes.recipe import Recipe

_SHOWN_CHARS = 600  # of a prompt and of a response


def sample(recipes: Sequence[Recipe], ask: Ask, *, seed: int, count: int) -> Iterator[str]:
    """`count` items of the recipes in turn, one try each: prompt, response, verdict.

    Raises what the back end raises.
    """
    for number in range(count):
        index, which = divmod(number, len(recipes))
        recipe = recipes[which]
        tried = attempt(recipe, item_at(recipe, index, seed=seed), 0, ask)
        yield "\n".join([f"--- {recipe.name} {index}", *_texts(tried), f"=> {_verdict(tried)}"])


def _texts(tried: Attempt) -> Iterator[str]:
    if tried.record is not None:
        yield f"> {_shown(tried.record.prompt)}"
        yield _shown(tried.record.response)
        return
    for name, answer in tried.answers.items():
        yield f"({name}) {_shown(answer)}"


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} ..."


def _verdict(tried: Attempt) -> str:
    if tried.rejection is not None:
        return f"rejected, {tried.rejection.name}: {tried.rejection.reason}"
    return f"accepted, fixed by {', '.join(tried.fixed)}" if tried.fixed else "accepted"
