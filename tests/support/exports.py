"""Small models of the shipped configurations for the tests of exports, and text for tokenizers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ys_llm.config.schema import Config
from ys_llm.model.language_model import Model

TEXTS = (
    "Once upon a time there was a fox. \"Hello,\" said the fox ('Vulpes').\n\nThe end?\n",
    "It's 10:45 – don't worry; naïve café, “Müller” (Straße) and 'quotes'."
    "\n\tTabs  and   spaces \n",
    "\x10P \x11 and \x11word \x10\x11Q, control characters that no text should hold\r\nWindows\r\n",
    "東京 is a city. Ω 🙂 \U0001f468\u200d\U0001f469 x²  \u200b end",
    "",
    "a",
    " 'Twas",
)


def small(config: Config) -> Config:
    """Its model, as narrow as its heads allow, with as many layers as it names."""
    model, options = config.model, dict(config.model.options)
    for name in model.layers:
        own = dict(options.get(name, {}))
        own |= {key: min(own[key], 32) for key in ("d_state", "d_key", "d_value") if key in own}
        own |= {key: min(own[key], 8) for key in ("n_heads",) if key in own}
        own |= {key: min(own[key], 4) for key in ("n_kv_heads",) if key in own}
        options[name] = own
    n_layers = min(model.n_layers, max(2, len(model.layers)))
    d_mlp = min(model.d_mlp, 24)
    sizes: dict[str, Any] = {"d_model": 128, "d_mlp": d_mlp, "n_layers": n_layers}
    narrow = replace(model, **sizes, layer_order=(), options=options)
    return replace(config, model=narrow)


def shaken(config: Config, vocab_size: int = 300) -> Model:
    """A new model in which nothing is 0 any more, so that no equation can hide."""
    torch.manual_seed(0)
    model = Model(config.model, vocab_size=vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model
