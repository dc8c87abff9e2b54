"""Adapters of other runs over the model of an engine: found beside it, switched and stacked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import UserError, command_line
from ys_llm.inference.engine import Engine
from ys_llm.model.lora import Adapter, Adapters
from ys_llm.runs.adapters import check_base, read_adapter
from ys_llm.runs.folder import ADAPTER


class RunAdapters:
    """Which adapters an engine computes with; `active` are their names, in order."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.active = engine, tuple[str, ...]()

    @cached_property
    def _switch(self) -> Adapters:
        return Adapters(self._engine.loaded.model)

    @property
    def _run(self) -> Path:
        return self._engine.loaded.path

    def names(self) -> list[str]:
        """The runs beside this one that are adapters of it."""
        found = self._run.parent.glob(f"*/{ADAPTER}")
        return sorted(path.parent.name for path in found if self._is_of_this(path.parent))

    def use(self, names: Sequence[str]) -> None:
        """Compute with the sum of these adapters; none gives the base, to the bit.

        UserError where one is missing, or belongs to another base; nothing changes then.
        """
        self._switch.use([self._read(name) for name in names])
        self.active = tuple(names)
        self._engine.weights_changed(is_base=not names)

    def _read(self, name: str) -> Adapter:
        folder = self._run.parent / name
        if not (folder / ADAPTER).is_file():
            known = ", ".join(self.names())
            make = command_line("sft", self._run.name, "DATA", method="lora", run=name)
            fix = f"Choose among: {known}" if known else f"Make one: {make}"
            raise UserError(f"there is no adapter {name!r} beside {self._run}", fix)
        saved = read_adapter(folder)
        check_base(self._run, saved.base, folder)
        own = Tokenizer.load(folder / "tokenizer.json")
        if own.fingerprint != self._engine.loaded.tokenizer.fingerprint:
            raise UserError(
                f"the adapter {name} has tokens that {self._run} does not have",
                f"Type: {command_line('run', name)}",
            )
        return saved.adapter

    def _is_of_this(self, folder: Path) -> bool:
        try:
            return read_adapter(folder).base.run == self._run.name
        except UserError:
            return False
