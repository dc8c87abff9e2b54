"""config.json and model.safetensors alone are enough to compute a logit, without the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray

from ys_llm.config.sources import load_config
from ys_llm.data.tokenizer import train_tokenizer
from ys_llm.model.language_model import Model
from ys_llm.runs.model_files import save_model

Array = NDArray[np.float64]
TEXT = b"The fox saw the hen and ran away."
FACTS = {"step": 1, "tokens": 1, "parameters": 1, "val_bits_per_byte": None, "has_records": False}


class ByHand:
    """The model as its published equations have it, in float64, one token after the other."""

    def __init__(self, run: Path) -> None:
        self.config: dict[str, Any] = json.loads((run / "config.json").read_text())
        tensors = safetensors.numpy.load_file(run / "model.safetensors")
        self.tensors = {name: array.astype(np.float64) for name, array in tensors.items()}
        assert (self.config["block"], self.config["norm"]) == ("pre_norm", "rms_norm")
        assert (self.config["layers"], self.config["mlp"]) == (["three_tier"], "swiglu")
        self.options = self.config["options"]["three_tier"]
        assert not self.options["factored"] and self.options["n_heads"] == 1
        zeros = np.zeros((3, self.options["d_state"]))
        self.latest: list[tuple[int, Array]] = []  # tokens and keys of the copy tier
        self.before = np.zeros(self.config["copy"]["width"])
        self.inputs: list[list[Array]] = [[] for _ in range(self.config["n_layers"])]
        self.states = [zeros.copy() for _ in range(self.config["n_layers"])]

    def rms_norm(self, x: Array, name: str) -> Array:
        rms = np.sqrt((x * x).mean() + self.config["norm_eps"])
        return np.asarray(x / rms * self.tensors[f"{name}.weight"])

    def layer_norm(self, x: Array, name: str) -> Array:
        eps = self.config["constants"]["three_tier"]["norm_eps"]
        normed = (x - x.mean()) / np.sqrt(x.var() + eps)
        return np.asarray(normed * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"])

    def mix(self, x: Array, layer: int, t: int) -> Array:
        own, state = f"blocks.{layer}.mixer", self.states[layer]
        if taps := self.config["convolution"]:
            self.inputs[layer] = [*self.inputs[layer], x][-taps:]
            earlier = self.inputs[layer][:-1]
            weights = self.tensors[f"{own}.taps"][taps - 1 - len(earlier) :]
            x = x + sum(w * earlier_x for w, earlier_x in zip(weights, earlier, strict=True))
            own += ".mixer"
        drive = self.tensors[f"{own}.in_proj.weight"] @ x + self.tensors[f"{own}.in_proj.bias"]
        held = self.tensors[f"{own}.summary_scale"] * (state[1] + state[2])
        if self.options["state_gate"]:
            gate = self.tensors[f"{own}.state_gate.weight"] @ x
            state[0] = np.tanh(gate + self.tensors[f"{own}.state_gate.bias"]) * state[0]
        pre = state[0] @ self.tensors[f"{own}.state_controller"] + drive + held
        state[0] = y = self.layer_norm(pre, f"{own}.norm")
        for number, tier in ((1, "local"), (2, "global")):
            interval, name = self.options[f"{tier}_interval"], f"{own}.{tier}_summary"
            if t % interval == interval - 1:
                pre = state[number] @ self.tensors[f"{name}.state_controller"]
                pre = pre + y @ self.tensors[f"{name}.input_influencer"]
                state[number] = (
                    self.layer_norm(pre, f"{name}.norm") @ self.tensors[f"{name}.output_shaper"]
                )
        return np.asarray(self.tensors[f"{own}.out_proj.weight"] @ y)

    def logits(self, token: int, t: int) -> Array:
        x = self.tensors["embedding.weight"][token]
        for layer in range(self.config["n_layers"]):
            block = f"blocks.{layer}"
            x = x + self.mix(self.rms_norm(x, f"{block}.mixer_norm"), layer, t)
            normed = self.rms_norm(x, f"{block}.mlp_norm")
            gate = self.tensors[f"{block}.mlp.gate.weight"] @ normed
            up = self.tensors[f"{block}.mlp.up.weight"] @ normed
            x = x + self.tensors[f"{block}.mlp.down.weight"] @ (gate / (1 + np.exp(-gate)) * up)
        head = "embedding" if self.config["tie_embeddings"] else "output"
        x = self.rms_norm(x, "final_norm")
        logits = np.asarray(self.tensors[f"{head}.weight"] @ x)
        return self.mixed(logits, x, token) if self.config["copy"]["window"] else logits

    def mixed(self, logits: Array, x: Array, token: int) -> Array:
        own, size = "copy_tier", self.config["copy"]
        e = self.tensors["embedding.weight"][token]
        named = self.tensors[f"{own}.token_key.weight"] @ (e / np.sqrt((e * e).mean()))
        self.latest = [*self.latest, (token, self.before + named)][-size["window"] :]
        self.before = np.asarray(self.tensors[f"{own}.key.weight"] @ x)
        query = self.tensors[f"{own}.query.weight"] @ x
        scores = [query @ key / np.sqrt(size["width"]) for _, key in self.latest]
        gate = self.tensors[f"{own}.gate.weight"][0] @ x + self.tensors[f"{own}.gate.bias"][0]
        rest, *shares = np.exp([gate, *scores]) / np.exp([gate, *scores]).sum()
        p = rest * np.exp(logits) / np.exp(logits).sum()
        for (copied, _), share in zip(self.latest, shares, strict=True):
            p[copied] += share
        return np.asarray(np.log(p))


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize(("window", "taps"), [(0, 0), (20, 0), (20, 4)])
def test_logits_computed_by_hand_are_those_of_the_model(
    tmp_path: Path, tie: bool, window: int, taps: int
) -> None:
    changes = ["model.d_model=12", "model.n_layers=2", "model.d_mlp=10", "tokenizer.kind=bytes"]
    changes += [f"model.copy.window={window}", "model.copy.width=6"]
    changes += [f"model.convolution={taps}"]
    changes += ["model.options={three_tier: {d_state: 8, d_summary: 4, local_interval: 3}}"]
    config = load_config(None, overrides=[*changes, f"model.tie_embeddings={tie}"]).config
    tokenizer = train_tokenizer(["x"], kind="bytes", vocab_size=258)
    model = Model(config.model, vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():  # every one of them takes part
            parameter.add_(0.3 * torch.randn_like(parameter))
    save_model(tmp_path, config, model, tokenizer, FACTS)
    tokens = list(TEXT) * 3  # past the first update of the global summary, at 63
    by_hand = ByHand(tmp_path)
    ours = np.stack([by_hand.logits(token, t) for t, token in enumerate(tokens)])
    with torch.no_grad():
        theirs, _ = model.double()(torch.tensor([tokens]))
    assert np.abs(ours - theirs[0].numpy()).max() < 1e-9
