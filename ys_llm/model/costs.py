"""What a model costs: parameters by part, FLOPs per token, bytes of state."""

from torch import nn

from ys_llm.model.language_model import Model


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each part of the trunk; a shared one is counted once."""
    parts = {"embedding": 0, "mixers": 0, "mlps": 0, "norms": 0, "copy": 0, "head": 0}
    parts["extra heads"] = 0
    for name, parameter in model.named_parameters():
        parts[_part(name)] += parameter.numel()
    return {part: count for part, count in parts.items() if count}


def _part(name: str) -> str:
    if name.startswith("embedding"):
        return "embedding"
    if name.startswith("output"):
        return "head"
    if name.startswith("copy_tier"):
        return "copy"
    if name.startswith("extra_heads"):
        return "extra heads"
    if ".mixer." in name or name.startswith(("cross_decoder.k_proj", "cross_decoder.v_proj")):
        return "mixers"
    return "mlps" if ".mlp." in name else "norms"


def parameter_count(model: nn.Module) -> int:
    """Number of parameters; a shared one is counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_per_token(model: Model, seq_len: int, *, training: bool = False) -> int:
    """Forward FLOPs per token of all matmuls, multiply-add = 2; training costs 3 times as many.

    Further prediction heads are computed where it is trained alone.
    """
    config, d_model = model.config, model.config.d_model
    mixers = sum(mixer.flops_per_token(seq_len) for mixer in model.mixers)
    if model.cross_decoder is not None:
        mixers += model.cross_decoder.flops_per_token(seq_len)
    swiglu, head = 6 * d_model * config.d_mlp, 2 * d_model * model.vocab_size
    channel_mix = 2 * d_model * (2 * config.d_mlp + d_model) if config.d_mlp else 0
    mlp = swiglu if config.mlp == "swiglu" else channel_mix
    mlps = 0 if config.block == "plain" else config.depth * mlp
    tier, n_extra = model.copy_tier, config.prediction_heads - 1 if training else 0
    copying = 0 if tier is None else tier.flops_per_token(seq_len, model.vocab_size)
    return mixers + mlps + copying + head + n_extra * (swiglu + head)


def state_bytes(model: Model, *, batch_size: int, seq_len: int) -> int:
    """Bytes of the state of all layers and the copy tier after `seq_len` tokens."""
    config = model.config
    copying = 0 if model.copy_tier is None else model.copy_tier.state_bytes(batch_size, seq_len)
    has_shift = config.block != "plain" and config.d_mlp and config.mlp == "channel_mix"
    input_bytes = batch_size * config.d_model * model.embedding.weight.element_size()
    shifts = config.depth * input_bytes if has_shift else 0
    cross = model.cross_decoder
    shared = 0 if cross is None else cross.state_bytes(batch_size, seq_len)
    mixers = sum(mixer.state_bytes(batch_size, seq_len) for mixer in model.mixers)
    return copying + shifts + shared + mixers
