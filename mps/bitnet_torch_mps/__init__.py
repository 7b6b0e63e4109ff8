"""Metal kernels for Apple GPUs, each with the bits of its reference.

A kernel stands in ``<op>.metal``, its launcher in ``<op>.py`` beside it; files without an op's
name hold what several share. ``_launch.py`` compiles and starts them.

No kernel has run on Apple hardware yet. On Linux the tests compile the same text for the CPU
and execute it (tests/metal_host); mps/README.md says what that proves and what it cannot.
"""

from __future__ import annotations

import os

import torch

from bitnet_torch.errors import BackendUnavailableError


def load() -> None:
    """Register the kernels for the ``mps`` device.

    Raises:
        BackendUnavailableError: There is no Apple GPU, this PyTorch compiles no Metal source, or
            it would compile it with fast math.
    """
    if not torch.backends.mps.is_available():
        raise BackendUnavailableError("no Apple GPU")
    if not hasattr(torch.mps, "compile_shader"):
        raise BackendUnavailableError(
            f"torch {torch.__version__} has no torch.mps.compile_shader; the kernels need 2.9"
        )
    # PyTorch reads this variable once, for every shader of the process.
    if os.environ.get("PYTORCH_MPS_FAST_MATH", "0") not in ("", "0"):
        raise BackendUnavailableError(
            "PYTORCH_MPS_FAST_MATH is set: division and roots would lose their bits"
        )
    register()


def register(also_accepts: tuple[str, ...] = ()) -> None:
    """Make the kernels the ``metal`` backend, whether or not this machine can run them.

    Args:
        also_accepts: Device types besides ``mps`` that ``use_backend("metal")`` takes. Tests
            that replace ``torch.mps.compile_shader`` run kernels on CPU tensors.
    """
    # Here and not at the top: a launcher imports the ops, which load this package.
    from bitnet_torch_mps import _device

    _device.also_accepts = also_accepts
    from bitnet_torch_mps import (  # noqa: F401
        attention,
        bit_linear,
        float_linear,
        glu,
        glu_norm_quantize,
        int8_linear,
        multi_ternary_linear,
        pack_codes,
        quantize_activation,
        quantize_head,
        quantize_pack_weight,
        quantize_weight,
        rms_norm,
        rms_norm_quantize,
        rope,
        rope_kv_write,
        screened_top_k,
        ternary_linear,
        ternary_linear_grad_input,
        ternary_linear_grad_weight,
        top_k,
        weight_codes_match,
    )
