"""The programs that kind files name: makers of records, and makers of facts for a model."""

import random
from collections.abc import Callable, Mapping

from ys_llm.data.records import Record
from ys_llm.gendata.programs.arithmetic import arithmetic
from ys_llm.gendata.programs.conversations import CONVERSATIONS
from ys_llm.gendata.programs.dates import dates
from ys_llm.gendata.programs.facts import constraint_facts, sql_facts, story_facts, table_facts
from ys_llm.gendata.programs.formats import formats
from ys_llm.gendata.programs.instruction_following import instruction_following
from ys_llm.gendata.programs.maths import maths
from ys_llm.gendata.programs.ordering import ordering
from ys_llm.gendata.programs.patterns import patterns
from ys_llm.gendata.programs.queries import queries
from ys_llm.gendata.programs.spelling import spelling
from ys_llm.gendata.programs.stories.cloze import cloze
from ys_llm.gendata.programs.stories.retelling import retelling
from ys_llm.gendata.programs.stories.scenes import scenes
from ys_llm.gendata.programs.stories.story import story
from ys_llm.gendata.programs.units import units

MAKERS: Mapping[str, Callable[[random.Random], Record]] = {
    "arithmetic": arithmetic,
    **CONVERSATIONS,
    "calendar": dates,
    "cloze": cloze,
    "formats": formats,
    "maths": maths,
    "obedience": instruction_following,
    "ordering": ordering,
    "patterns": patterns,
    "queries": queries,
    "retelling": retelling,
    "scenes": scenes,
    "spelling": spelling,
    "stories": story,
    "units": units,
}
FACTS: Mapping[str, Callable[[random.Random], dict[str, str]]] = {
    "constraints": constraint_facts,
    "sql_table": sql_facts,
    "story": story_facts,
    "table": table_facts,
}
