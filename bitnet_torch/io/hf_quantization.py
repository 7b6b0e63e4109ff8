"""``quantization_config``: how the linear layers of a checkpoint are stored.

==============  ========  ===================  ===============  =================================
linear_class    mode      ``weight``           ``weight_scale``  ``bias`` is added
==============  ========  ===================  ===============  =================================
autobitlinear   offline   uint8 codes          w_scale          before the product is scaled
bitlinear       (any)     uint8 codes          1 / w_scale      as it is
autobitlinear   online    float masters        (none)           as it is
(no section)    --        float, not ternary   (none)           as it is
==============  ========  ===================  ===============  =================================

The direction of the scale follows from ``linear_class``, which names the class that will run the
layer, and from nothing else: a scale read in the wrong direction gives plausible numbers.
An offline AutoBitLinear of transformers computes ``(x @ t + bias) * w_scale``.

With ``use_rms_norm`` each of these layers has a norm in front, ``<module>.rms_norm.weight``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from bitnet_torch.errors import CheckpointError
from bitnet_torch.ops.rms_norm import MIN_EPS

_KEYS = (
    "quant_method",
    "linear_class",
    "quantization_mode",
    "modules_to_not_convert",
    "use_rms_norm",
    "rms_norm_eps",
)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]+")


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint stores its ternary layers.

    Attributes:
        packed: True for uint8 codes and scales, False for float masters.
        inverse: Whether ``weight_scale`` holds 1 / w_scale.
        not_converted: Beginnings or ends of the names of modules that stay float.
        norm_eps: Of the norm inside each ternary layer; None if there is none.
    """

    packed: bool
    inverse: bool = False
    not_converted: tuple[str, ...] = ("lm_head",)
    norm_eps: float | None = None

    @property
    def scaled_bias(self) -> bool:
        """Whether a stored bias is in units of the layer's scale."""
        return self.packed and not self.inverse

    def covers(self, module: str) -> bool:
        """Return whether the linear layer of this name is ternary, as transformers decides it."""
        return not any(_matches(module, name) for name in self.not_converted)


def _matches(module: str, name: str) -> bool:
    """Return whether ``name`` is an end of ``module``, or its beginning up to a dot."""
    return module.endswith(name) or f"{module}.".startswith(f"{name.removesuffix('.')}.")


def parse_quantization(values: Any) -> Quantization | None:
    """Read the section; None where there is none.

    Raises:
        CheckpointError: It is not of BitNet's method, or holds what is not supported.
    """
    if values is None:
        return None
    if not isinstance(values, dict) or values.get("quant_method") != "bitnet":
        raise CheckpointError(f"quantization_config {values!r} is not of quant_method 'bitnet'")
    if unknown := sorted(set(values) - set(_KEYS)):
        raise CheckpointError(f"unknown key {unknown[0]!r} in quantization_config")
    cls, mode = values.get("linear_class", "bitlinear"), values.get("quantization_mode", "offline")
    if cls not in ("bitlinear", "autobitlinear") or mode not in ("offline", "online"):
        raise CheckpointError(f"linear_class {cls!r} and quantization_mode {mode!r} are not known")
    return Quantization(
        packed=cls == "bitlinear" or mode == "offline",
        inverse=cls == "bitlinear",
        not_converted=_names(values.get("modules_to_not_convert")),
        norm_eps=_norm_eps(values),
    )


def render_quantization(quantization: Quantization) -> dict[str, Any]:
    """Return the section from which :func:`parse_quantization` gives ``quantization``."""
    values: dict[str, Any] = {
        "quant_method": "bitnet",
        "linear_class": "bitlinear" if quantization.inverse else "autobitlinear",
        "quantization_mode": "offline" if quantization.packed else "online",
        "modules_to_not_convert": list(quantization.not_converted),
    }
    if quantization.norm_eps is not None:
        values |= {"use_rms_norm": True, "rms_norm_eps": quantization.norm_eps}
    return values


def _names(values: Any) -> tuple[str, ...]:
    if values is None:
        return ("lm_head",)
    if not isinstance(values, list) or not all(isinstance(n, str) and n for n in values):
        raise CheckpointError(f"modules_to_not_convert must be a list of names, got {values!r}")
    for name in values:
        # transformers reads them as regular expressions, which a file must not make us run.
        if not _PLAIN_NAME.fullmatch(name):
            raise CheckpointError(
                f"modules_to_not_convert holds {name!r}; names of modules are supported, "
                "patterns are not"
            )
    return tuple(dict.fromkeys(values))


def _norm_eps(values: dict[str, Any]) -> float | None:
    used, eps = values.get("use_rms_norm", False), values.get("rms_norm_eps", 1e-6)
    if used not in (None, False, True):
        raise CheckpointError(f"use_rms_norm must be true or false, got {used!r}")
    if not used:
        return None
    if type(eps) is not float or not MIN_EPS <= eps < 1:
        raise CheckpointError(
            f"rms_norm_eps in quantization_config must be in [{MIN_EPS}, 1), got {eps!r}"
        )
    return eps
