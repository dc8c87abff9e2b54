"""What may be set for fine-tuning: `ys sft`, which starts from the weights of `train.init_from`."""

from dataclasses import dataclass, field
from typing import Literal

from ys_llm.config.strict_reader import setting


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA)."""

    rank: int = setting(8, "rank of an adapter", minimum=1, maximum=1 << 20)
    alpha: float = setting(16.0, "an adapter is scaled by alpha / rank", above=0.0)
    dropout: float = setting(
        0.0, "probability with which an adapter does not see an input", minimum=0.0, below=1.0
    )
    targets: tuple[str, ...] = setting(
        ("blocks.*",),
        "patterns of the matrices that get one, by name or by the end of it, as q_proj or mlp.*",
    )

    def __post_init__(self) -> None:
        """Raise ValueError unless there is a pattern."""
        if not self.targets or not all(self.targets):
            raise ValueError("targets must name at least one matrix, found none")


@dataclass(frozen=True)
class SftConfig:
    """Fine-tuning."""

    method: Literal["none", "full", "lora", "state"] = setting(
        "none",
        "what is trained: full = all weights; lora = adapters beside them; state = the initial "
        "state; none = no fine-tuning",
    )
    objective: Literal["replies", "preferences"] = setting(
        "replies",
        "replies: the loss of the replies; preferences: DPO on chosen and rejected replies",
    )
    epochs: float | None = setting(
        None,
        "passes over the data, from which max_steps derives; null = max_steps decides",
        above=0,
    )
    replay: float = setting(
        0.0, "share of the rows of a batch that are text of the base", minimum=0.0, below=1.0
    )
    beta: float = setting(0.1, "DPO: how closely the model is held to its base", above=0.0)
    lora: LoraConfig = field(
        default_factory=LoraConfig, metadata={"help": "the adapters of method: lora"}
    )
