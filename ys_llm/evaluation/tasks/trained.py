"""The tasks that `ys compare --task` trains small models on."""

from collections.abc import Mapping

from ys_llm.evaluation.tasks.associative_recall import MQAR
from ys_llm.evaluation.tasks.copying import COPYING, SELECTIVE_COPYING
from ys_llm.evaluation.tasks.passkey import PASSKEY
from ys_llm.evaluation.tasks.state_tracking import PARITY, S3, S5
from ys_llm.evaluation.tasks.task import Task

TASKS: Mapping[str, Task] = {
    task.name: task for task in (MQAR, COPYING, SELECTIVE_COPYING, PASSKEY, PARITY, S3, S5)
}
