"""Train, study and talk to small language models whose memory is a state of constant size."""

__version__ = "0.1.0"
