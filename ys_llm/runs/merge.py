"""An adapter merged into the weights of its base: a run of its own, which needs neither."""

import secrets
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ys_llm.errors import UserError
from ys_llm.runs.folder import COMMON_WORDS, SPLIT
from ys_llm.runs.model_files import load_run, read_json, save_model
from ys_llm.system.files import make_folder, replace_folder, write_atomically
from ys_llm.system.lock import RUN_LOCK

_FACTS = ("step", "tokens", "parameters", "val_bits_per_byte", "has_records", "sources", "base")


def merge_run(run: Path, folder: Path) -> Path:
    """Write the model of a run as a run of its own, under a temporary name first; its folder.

    UserError for a run whose initial state was learned: no weights can hold it.
    """
    loaded = load_run(run)
    if loaded.model.initial_state is not None:
        raise UserError(
            f"{run} has learned an initial state, which no weights can hold",
            "Use it as it is.",
        )
    described = read_json(run / "config.json")
    facts = {name: described[name] for name in _FACTS if name in described}
    sft = replace(loaded.config.sft, method="full")
    config = replace(loaded.config, run=folder.name, sft=sft)
    make_folder(folder.parent)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        write_atomically(temporary / RUN_LOCK, "", create_folder=False)
        for name in (SPLIT, COMMON_WORDS):
            if (run / name).exists():
                shutil.copyfile(run / name, temporary / name)
        loaded.tokenizer.save(temporary / "tokenizer.json")
        save_model(temporary, config, loaded.model, loaded.tokenizer, facts)
        replace_folder(temporary, folder)
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(temporary)
    return folder
