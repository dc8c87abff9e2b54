"""The configuration of a model that ys trained, for transformers."""

from transformers import PretrainedConfig


class YsConfig(PretrainedConfig):
    """`network` describes the model in full: every option and constant of its equations."""

    model_type = "ys"
