"""Weight scales that survive a file whose format stores them rounded.

Hugging Face's packed layout keeps a scale as one bfloat16 number, which loses 16 of its bits
and, with them, the promise that a packed model computes what was trained. So a file that we
write also carries, in the safetensors metadata, the float32 bits of every scale and a
checksum that binds them to the codes::

    "bitnet_torch.scales": '{"model.layers.0.self_attn.q_proj": ["3d2aaaab", "<sha256>"], ...}'

A reader that knows nothing of it reads the rounded scale. This one uses the exact scale if it
rounds to the stored one and the codes have the checksum; otherwise the two do not belong
together and the file is refused. A file without the entry has only its stored scales; but
where ``config.json`` says ``exact_scales``, an absent entry is damage and not a custom.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnet_torch.errors import CheckpointError
from bitnet_torch.ops._checks import FLOATS

METADATA_KEY = "bitnet_torch.scales"


@dataclass(frozen=True)
class ExactScale:
    """The float32 scale of one layer.

    Attributes:
        bits: The 32 bits, as 8 hexadecimal digits.
        sha256: Of the layer's packed codes, row by row, and then of ``bits``.
    """

    bits: str
    sha256: str

    @property
    def value(self) -> Tensor:
        """The scale, () float32."""
        return _from_bits(self.bits)


def describe_scale(w_scale: Tensor, packed: Tensor) -> ExactScale:
    """Return what a file shall remember of one layer's scale and codes."""
    bits = f"{int(w_scale.reshape(()).cpu().view(torch.int32)):08x}"
    return ExactScale(bits, _sha256(packed, bits))


def render_scales(scales: Mapping[str, ExactScale]) -> str:
    """Return the metadata entry for the layers of one file."""
    return json.dumps({name: [s.bits, s.sha256] for name, s in sorted(scales.items())})


def parse_scales(metadata: Mapping[str, str]) -> dict[str, ExactScale]:
    """Read the entry of a file's metadata; empty if the file has none.

    Raises:
        CheckpointError: The entry is damaged.
    """
    if METADATA_KEY not in metadata:
        return {}
    try:
        entry = json.loads(metadata[METADATA_KEY])
        scales = {name: ExactScale(*_two_strings(value)) for name, value in entry.items()}
        for scale in scales.values():
            _from_bits(scale.bits)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"metadata {METADATA_KEY!r} is damaged: {error}") from error
    return scales


def resolve_scale(
    stored: Tensor, inverse: bool, exact: ExactScale | None, packed: Tensor, module: str
) -> Tensor:
    """Return the float32 scale () of one layer.

    Args:
        stored: ``weight_scale`` as the file has it, one element.
        inverse: Whether the file holds 1 / w_scale.
        exact: What the metadata says of this layer, if it says anything.
        packed: The layer's codes, in the exchange layout.
        module: Name for errors.

    Raises:
        CheckpointError: The scale is not a positive finite number, or contradicts ``exact``.
    """
    own = _stored_scale(stored, inverse, f"{module}.weight_scale")
    if exact is None:
        return own
    w_scale = _from_bits(exact.bits)
    rounded = w_scale if not inverse else torch.ones_like(w_scale) / w_scale
    if rounded.to(stored.dtype) != stored.reshape(()):
        raise CheckpointError(
            f"{module}.weight_scale means {float(own)!r} but the exact scale beside it is "
            f"{float(w_scale)!r}, which does not round to that",
            tensor=f"{module}.weight_scale",
        )
    if (found := _sha256(packed, exact.bits)) != exact.sha256:
        raise CheckpointError(
            f"{module}.weight and its exact scale do not belong together: sha256 is "
            f"{found[:12]}..., expected {exact.sha256[:12]}...",
            tensor=f"{module}.weight",
        )
    return w_scale


def _stored_scale(stored: Tensor, inverse: bool, name: str) -> Tensor:
    if stored.numel() != 1 or stored.dtype not in FLOATS:
        raise CheckpointError(
            f"{name} must be one bfloat16, float16 or float32 number, got "
            f"{tuple(stored.shape)} {stored.dtype}"
        )
    value = stored.reshape(()).to(torch.float32, copy=True)
    _check_positive(name, value)
    own = value if not inverse else torch.ones_like(value) / value
    _check_positive(name, own)
    return own


def _check_positive(name: str, value: Tensor) -> None:
    if not (torch.isfinite(value) and value > 0):
        raise CheckpointError(
            f"{name} is {float(value)}; a scale must be finite and positive", tensor=name
        )


def _two_strings(value: object) -> tuple[str, str]:
    if not (isinstance(value, list) and [type(v) for v in value] == [str, str]):
        raise ValueError(f"expected [bits, sha256], got {value!r}")
    return value[0], value[1]


def _from_bits(bits: str) -> Tensor:
    word = int(bits, 16)
    if len(bits) != 8 or not 0 < word < 0x7F800000:
        raise ValueError(f"{bits!r} are not the bits of a positive float32 number")
    return torch.tensor(word, dtype=torch.int32, device="cpu").view(torch.float32)


def _sha256(packed: Tensor, bits: str) -> str:
    digest = hashlib.sha256(packed.contiguous().cpu().numpy().data)
    digest.update(bits.encode("ascii"))
    return digest.hexdigest()
