"""A run's model for other programs: for transformers, and as ONNX.

An export for transformers carries its own modelling files: `ops/exported.py`, `model/exported.py`,
`mixers/exported/` and `runs/exported/`, whose imports are rewritten to lead to each other. They are
the only second form of the equations; every export is compared with the model before it gets its
name, and none is made that differs.
"""

import copy
import inspect
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from ys_llm.data import case_markers, marking
from ys_llm.data.chat import chat_template
from ys_llm.data.controls import CONTROLS
from ys_llm.data.fast_tokenizer import fast_tokenizer, is_expressible
from ys_llm.data.tokenizer import Tokenizer
from ys_llm.errors import EXIT_USAGE, UserError
from ys_llm.mixers import exported as mixers
from ys_llm.model import exported as network
from ys_llm.model.language_model import Model
from ys_llm.model.modes import inference_mode
from ys_llm.ops import exported as ops
from ys_llm.runs.model_files import LoadedRun, architecture, json_text, tensor_bytes, weights
from ys_llm.system.files import make_folder, readable_os_errors, replace_folder, write_synced

Format = Literal["hf", "onnx"]

_LARGEST_DIFFERENCE = 1e-6  # of a log-probability in float64: a wrong equation is far above
_COMPARED = (70, 1, 30)  # tokens of the calls that are compared: past the period of any summary
_FILES = Path(__file__).parent / "exported"
_CHAT = (
    "{{ '<end>' }}{% for message in messages %}{{ message['content'] }}"
    "{{ '<start>' if message['role'] == 'user' else '<end>' }}{% endfor %}"
)


@dataclass(frozen=True)
class Exported:
    """What was written, and by how much a logit of it differed from the model's at most."""

    folder: Path
    parameters: int
    bytes: int
    difference: float


def check_folder(folder: Path) -> None:
    """Raise UserError unless the folder does not exist, or is empty."""
    with readable_os_errors(folder):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
    raise UserError(
        f"{folder} exists already",
        "Choose another folder, or remove this one",
        exit_code=EXIT_USAGE,
    )


def export_run(run: LoadedRun, form: Format, folder: Path) -> Exported:
    """Write the export under a temporary name, compare it with the model, and rename it.

    Raises UserError where the folder is taken, or the model has a part that no export can have.
    """
    check_folder(folder)
    _refuse_missing(run, form)
    net = network_of(run.model)
    difference = largest_difference(run.model)
    if not difference <= _LARGEST_DIFFERENCE:
        raise UserError(
            f"the exported model would differ from {run.path}: a log-probability by "
            f"{difference:.2g}",
            "Nothing was written. Please report this with the run's config.yaml.",
        )
    make_folder(folder.parent)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        if form == "onnx":
            from ys_llm.runs.export_onnx import write_graphs

            write_graphs(net, temporary)
        for name, content in _files(run, form, net).items():
            write_synced(temporary / name, content)
        size = sum(path.stat().st_size for path in temporary.iterdir())
        replace_folder(temporary, folder)
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(temporary)
    return Exported(folder, sum(x.numel() for x in net.parameters()), size, difference)


def network_of(model: Model) -> network.Network:
    """The same model in the form that an export carries.

    Raises UserError where it has weights that the form does not know.
    """
    config = {**architecture(model.config), "vocab_size": model.vocab_size}
    with torch.device("meta"):
        net = network.Network(config, mixers.MIXERS)
    tensors = {
        name: tensor.detach()
        for name, tensor in weights(model).items()
        if not name.startswith("extra_heads.")  # for training alone
    }
    if config["tie_embeddings"]:
        tensors["output.weight"] = tensors["embedding.weight"]
    if unknown := sorted(tensors.keys() ^ net.state_dict().keys()):
        raise UserError(
            f"the model cannot be exported: an export knows no {unknown[0]}",
            "Export another run",
        )
    net.load_state_dict(tensors, assign=True)
    if config["tie_embeddings"]:
        net.output.weight = net.embedding.weight
    return net.eval()


def largest_difference(model: Model) -> float:
    """Between log-probabilities of random tokens by the model and by what an export has of it.

    Both read them in pieces, carrying the state, in float64, so that rounding hides nothing.
    """
    model = copy.deepcopy(model).double()
    net = network_of(model)
    generator = torch.Generator().manual_seed(0)
    state: Any = None
    own: dict[str, Tensor] | None = None
    largest = 0.0
    device = next(model.parameters()).device
    with inference_mode(model):
        for n_tokens in _COMPARED:
            shape = (2, n_tokens)
            tokens_BT = torch.randint(model.vocab_size, shape, generator=generator).to(device)
            logits, state = model(tokens_BT, state)
            found, own = net(tokens_BT, own)
            difference = float((logits.log_softmax(-1) - found.log_softmax(-1)).abs().max())
            largest = max(largest, difference) if difference == difference else difference
    return largest


def _refuse_missing(run: LoadedRun, form: Format) -> None:
    """Raise UserError for a mixer, copy tier or tokenizer that an export cannot have."""
    config, problem = run.config.model, ""
    lacking = [name for name in dict.fromkeys(config.mixer_names) if name not in mixers.MIXERS]
    if lacking:
        problem = f"the mixer {lacking[0]} has no form for other programs"
        raise UserError(
            f"{run.path} cannot be exported: {problem}",
            f"Write ys_llm/mixers/exported/{lacking[0]}.py, or export another run",
        )
    if config.copy.window and config.copy.keep != "recent":
        problem = f"model.copy.keep is {config.copy.keep}, and only recent has such a form"
    elif form == "onnx" and not is_expressible(run.tokenizer):
        problem = f"only --to hf has a form for its tokenizer, of kind {run.tokenizer.kind}"
    if problem:
        raise UserError(f"{run.path} cannot be exported: {problem}", "Export another run")


def _files(run: LoadedRun, form: Format, net: network.Network) -> dict[str, str | bytes]:
    """Every file of the folder but the graphs, by name."""
    card = run.path / "README.md"
    files: dict[str, str | bytes] = {
        "tokenizer.json": fast_tokenizer(run.tokenizer),
        "README.md": card.read_bytes() if card.exists() else f"# {run.config.run}\n",
        "config.json": json_text(_config(run, net, form)),
    }
    if form == "onnx":
        return files
    return {
        **files,
        **_code(),
        "tokenizer_config.json": json_text(_tokenizer_config(run)),
        "generation_config.json": json_text(_generation(run)),
        "model.safetensors": tensor_bytes(
            {f"network.{name}": tensor for name, tensor in net.named_parameters()}
        ),
    }


def _config(run: LoadedRun, net: network.Network, form: Format) -> dict[str, Any]:
    """config.json, as transformers reads it."""
    config = {
        "model_type": "ys",
        "network": net.config,
        "vocab_size": run.model.vocab_size,
        "hidden_size": run.config.model.d_model,
        "num_hidden_layers": len(run.config.model.order),
        "tie_word_embeddings": run.config.model.tie_embeddings,
        **_control_ids(),
    }
    if form == "onnx":
        return config
    code = {"AutoConfig": "configuration_ys.YsConfig"}
    code["AutoModelForCausalLM"] = "modeling_ys.YsForCausalLM"
    return {**config, "architectures": ["YsForCausalLM"], "dtype": "float32", "auto_map": code}


def _control_ids() -> dict[str, int]:
    """A text begins and ends with `<end>`, which pads too."""
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), Tokenizer.end_id)


def _tokenizer_config(run: LoadedRun) -> dict[str, Any]:
    end, start = (run.tokenizer.token_text(i) for i in (Tokenizer.end_id, Tokenizer.start_id))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), end),
        "additional_special_tokens": [start],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if not is_expressible(run.tokenizer):
        config["tokenizer_class"] = "YsTokenizer"
        config["auto_map"] = {"AutoTokenizer": [None, "tokenization_ys.YsTokenizer"]}
    if run.tokenizer.has_roles:
        further = [name for name in run.tokenizer.controls if name not in CONTROLS]
        config["additional_special_tokens"] += further
    if not run.has_records:
        return config
    return {**config, "chat_template": chat_template() if run.chats else _CHAT}


def _generation(run: LoadedRun) -> dict[str, Any]:
    """generation_config.json: the settings of `generate` by their names there."""
    config, ids = run.config.generate, dict[str, Any](_control_ids())
    if run.chats:
        ids["eos_token_id"] = sorted(run.end_ids)
    ids |= {"max_new_tokens": config.max_tokens, "repetition_penalty": config.repetition_penalty}
    if config.temperature == 0:
        return {**ids, "do_sample": False}
    drawn = {name: getattr(config, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    return {**ids, "do_sample": True, **drawn}


def _code() -> dict[str, str]:
    """The modelling files, by name.

    Every mixer is there, so that all exports have the same code: transformers uses that of the
    first one that a process loads for all.
    """
    names = list(mixers.MIXERS)
    imports = "".join(f"from .mixer_{name} import Mixer as {name}\n" for name in names)
    table = ", ".join(f'"{name}": {name}' for name in names)
    files = {path.name: path.read_text() for path in _FILES.glob("*_ys.py")}
    files |= {"ops_ys.py": _source(ops), "network_ys.py": _source(network)}
    files |= {"case_markers_ys.py": _source(case_markers), "marking_ys.py": _source(marking)}
    files |= {f"mixer_{name}.py": _source(_twin(name)) for name in names}
    files = {name: flattened(source) for name, source in files.items()}
    title = '"""The mixers, by the names that config.json has."""\n\n'
    return {**files, "mixers_ys.py": f"{title}{imports}\nMIXERS = {{{table}}}\n"}


def flattened(source: str) -> str:
    """A file whose imports lead to the files beside it."""
    for pattern, name in _IMPORTS.items():
        source = re.sub(rf"^from {pattern} import", f"from .{name} import", source, flags=re.M)
    return source


_IMPORTS: Mapping[str, str] = {
    r"ys_llm\.ops\.exported": "ops_ys",
    r"ys_llm\.model\.exported": "network_ys",
    r"ys_llm\.mixers\.exported": "mixers_ys",
    r"ys_llm\.data\.(case_markers|marking)": r"\1_ys",
    r"ys_llm\.runs\.exported\.(\w+)": r"\1",
}


def _twin(name: str) -> ModuleType:
    module = inspect.getmodule(mixers.MIXERS[name])
    assert module is not None
    return module


def _source(module: ModuleType) -> str:
    return inspect.getsource(module)
