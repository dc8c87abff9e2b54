"""A model that ys trained, for transformers: `network_ys.py` with a cache that is its state.

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))

A token costs the same after ten words as after ten thousand: each step reads one token and the
state. Recurrences are computed token by token here, which is exact and plain, and slower than ys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from ys_llm.mixers.exported import MIXERS
from ys_llm.model.exported import Network
from ys_llm.runs.exported.configuration_ys import YsConfig

State = dict[str, Tensor]


class YsCache:
    """The state after the tokens that were read: all that the model keeps of them.

    Keep a cache, and pass it again with the same ids and others after them, to continue a text in
    several ways: the model never changes it.
    """

    is_compileable = False
    is_croppable = False  # a summary cannot be taken back
    is_linear = (True,)

    def __init__(self, state: State, seq_length: int) -> None:
        self.state, self.seq_length = state, seq_length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many ids of each row were read, padding included."""
        return self.seq_length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take these rows instead; beam search does."""
        self.state = {name: x.index_select(0, beam_idx) for name, x in self.state.items()}


@dataclass
class YsOutput(ModelOutput):
    """Loss in nats a token where there are labels, logits, and the state."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache: YsCache | None = None

    @property
    def past_key_values(self) -> YsCache | None:
        """The cache by its usual name."""
        return self.cache


class YsForCausalLM(PreTrainedModel, GenerationMixin):
    """See the top of this file."""

    config_class = YsConfig
    base_model_prefix = "network"
    main_input_name = "input_ids"
    _tied_weights_keys: ClassVar = {"network.output.weight": "network.embedding.weight"}
    _is_stateful = True

    def __init__(self, config: YsConfig) -> None:
        super().__init__(config)
        self.network = Network(config.network, MIXERS)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: YsCache | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> YsOutput | tuple[Any, ...]:
        """Logits of all ids, or of the last `logits_to_keep`; `cache` is what came before them.

        Ids whose mask is 0, on either side of a row, are not read.
        """
        cache = kwargs.get("past_key_values") if cache is None else cache
        state, n_ids = None if cache is None else cache.state, input_ids.shape[1]
        mask = None if attention_mask is None else attention_mask[:, -n_ids:].bool()
        if mask is None or mask.all():
            logits, state = self.network(input_ids, state, logits_to_keep)
        else:
            logits, state = self._read_by_row(input_ids, mask, state)
            logits = logits[:, -logits_to_keep:]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        seen = n_ids if cache is None else cache.seq_length + n_ids
        after = YsCache(state, seen) if kwargs.get("use_cache", True) is not False else None
        output = YsOutput(loss=loss, logits=logits, cache=after)
        return output if kwargs.get("return_dict", True) is not False else output.to_tuple()

    def _read_by_row(
        self, input_ids: Tensor, mask: Tensor, state: State | None
    ) -> tuple[Tensor, State]:
        """Rows of different lengths are read one by one, so that padding leaves no trace."""
        state = self.network.init_state(len(input_ids)) if state is None else state
        rows, states = [], []
        size = self.network.output.out_features
        for row, is_read in enumerate(mask):
            own = {name: x[row : row + 1] for name, x in state.items()}
            logits = state["position"].new_zeros(len(is_read), size).float()
            if is_read.any():
                found, own = self.network(input_ids[row, is_read][None], own)
                logits = logits.to(found.dtype).masked_scatter(is_read[:, None], found[0])
            rows.append(logits)
            states.append(own)
        return torch.stack(rows), _joined(states)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        cache: YsCache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The ids that the cache has not read."""
        cache = kwargs.get("past_key_values") if cache is None else cache
        if cache is not None:
            input_ids = input_ids[:, cache.get_seq_length() :]
        inputs: dict[str, Any] = {"input_ids": input_ids, "cache": cache}
        passed = (name for name in ("use_cache", "logits_to_keep") if name in kwargs)
        return {
            **inputs,
            "attention_mask": attention_mask,
            **{name: kwargs[name] for name in passed},
        }

    def _update_model_kwargs_for_generation(
        self, outputs: YsOutput, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, **kwargs
        )
        if outputs.cache is None:
            return updated
        # Earlier versions of transformers look for the second name.
        return {**updated, "cache": outputs.cache, "past_key_values": outputs.cache}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first step makes the cache

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the weights are those of the export."""

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.network.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the embedding."""
        self.network.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.network.output


def _joined(states: list[State]) -> State:
    """One state; what has grown to different lengths is padded with zeros on the left."""
    return {name: _side_by_side([state[name] for state in states]) for name in states[0]}


def _side_by_side(rows: list[Tensor]) -> Tensor:
    if rows[0].dim() < 2:
        return torch.cat(rows)
    longest = max(row.shape[1] for row in rows)
    return torch.cat([F.pad(x, [0, 0] * (x.dim() - 2) + [longest - x.shape[1], 0]) for x in rows])
