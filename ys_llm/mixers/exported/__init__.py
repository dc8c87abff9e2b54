"""The mixers as an export carries them: their equations, token by token, in plain torch.

`exported/<name>.py` is the twin of `mixers/<name>.py`: a `Mixer` with the same parameters by the
same names, built as `Mixer(d_model, options, constants)` from what config.json holds, with

    shapes()                          of the tensors of its state, by name, without the batch
    forward(x_BTD, state, position_B) y_BTD and the state, for any T >= 1

It imports nothing but torch and `ops/exported.py`. `tests/mixers/test_exported.py` compares every
twin with its mixer. A mixer without a twin cannot be exported.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Any


def _mixers() -> dict[str, Any]:
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return {name: importlib.import_module(f"{__name__}.{name}").Mixer for name in names}


MIXERS = _mixers()
