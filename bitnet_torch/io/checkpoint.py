"""Models to folders and back, in the layout of Hugging Face.

A folder holds ``config.json`` (:mod:`bitnet_torch.io.hf_config`) and ``model.safetensors``.
``"hf-packed"`` stores each ternary layer as 2-bit codes and a scale
(:mod:`bitnet_torch.io.scales`), ``"hf-master"`` as float weights that quantise to them. Either
form can be written from a model in training (``BitLinear``) or in inference
(``PackedBitLinear``). A model without ternary layers is written as it is, by ``"hf-master"``.

Reading checks every tensor before it is used, and the finished model owns its memory.
"""

from bitnet_torch.io.loading import load_pretrained
from bitnet_torch.io.saving import save_pretrained

__all__ = ["load_pretrained", "save_pretrained"]
