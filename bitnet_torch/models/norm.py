"""The norm of the decoder, which is that of :mod:`bitnet_torch.nn.norm`."""

from bitnet_torch.nn.norm import RMSNorm

__all__ = ["RMSNorm"]
