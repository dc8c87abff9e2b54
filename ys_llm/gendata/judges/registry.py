"""The judges by the kind of prompt that each understands.

A judge takes a prompt and an answer, and returns which of the things asked for the answer does. Its
checks depend on the prompt alone; there are none where the prompt is of another kind. What an
answer must be is derived from the prompt: no judge sees the text's own answer.

Without a judge are `queries` and `regex`, as many answers are right, and `retelling`, which asks
for summaries in words of one's own.
"""

from collections.abc import Callable, Mapping

from ys_llm.gendata.judges.calendar import calendar
from ys_llm.gendata.judges.forms import cloze, formats, instructions
from ys_llm.gendata.judges.letters import spelling
from ys_llm.gendata.judges.numbers import arithmetic, maths, units
from ys_llm.gendata.judges.order import ordering
from ys_llm.gendata.judges.rooms import rooms
from ys_llm.gendata.judges.stories import stories

Judge = Callable[[str, str], Mapping[str, bool]]

JUDGES: Mapping[str, Judge] = {
    "stories": stories,
    "cloze": cloze,
    "rooms": rooms,
    "spelling": spelling,
    "arithmetic": arithmetic,
    "maths": maths,
    "units": units,
    "calendar": calendar,
    "ordering": ordering,
    "format": formats,
    "obedience": instructions,
}
