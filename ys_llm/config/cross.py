"""What may be set for the layers that attend to one global cache."""

from dataclasses import dataclass

from ys_llm.config.strict_reader import setting


@dataclass(frozen=True)
class CrossConfig:
    """Layers after all others that attend to one cache of keys and values (YOCO)."""

    layers: int = setting(0, "how many, after the n_layers; 0 = none", minimum=0, maximum=1000)
    n_heads: int = setting(4, "query heads", minimum=1)
    n_kv_heads: int = setting(
        0, "key and value heads, a divisor of n_heads; 0 = n_heads", minimum=0
    )
    rope_theta: float = setting(10_000.0, "longest rotary wavelength / 2 pi, in tokens", above=0)
    window: int = setting(0, "tokens in view, the present one included; 0 = all", minimum=0)

    def __post_init__(self) -> None:
        """Raise ValueError unless every key and value head serves as many query heads."""
        if self.n_kv_heads and self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads {self.n_kv_heads} must divide n_heads {self.n_heads}")
