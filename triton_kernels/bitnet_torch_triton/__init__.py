"""Triton kernels for CUDA and ROCm devices, each with the bits of its reference.

A kernel stands in the file of its op's name, beside its launcher. ``number.py`` holds the
roundings that all of them share, ``_launch.py`` how a kernel is started. Nothing here calls
Triton's autotuner: a launch configuration is a row of a table, so that the same call does the
same thing on every run.

With ``TRITON_INTERPRET=1`` in the environment before the first import, Triton runs the same
kernels in Python on CPU tensors, slowly. ``use_backend("triton")`` then accepts CPU tensors;
default dispatch still sends them to the ``cpu`` backend.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from bitnet_torch.errors import BackendUnavailableError
from bitnet_torch_triton._interpreter import interpreted


def load() -> None:
    """Register the kernels for the ``cuda`` device.

    Raises:
        BackendUnavailableError: Triton is not installed, or there is neither a CUDA device
            nor the interpreter to run its kernels.
    """
    if find_spec("triton") is None:
        raise BackendUnavailableError(
            "triton is not installed; it comes with CUDA builds of torch, or with "
            "pip install 'bitnet-torch[triton]'"
        )
    # Counting asks the driver's management library; is_available() would start the driver,
    # after which a forked worker cannot use the device.
    if not interpreted() and torch.cuda.device_count() == 0:
        raise BackendUnavailableError("no CUDA device, and TRITON_INTERPRET=1 is not set")
    # Here and not at the top: importing a launcher imports Triton.
    from bitnet_torch_triton import (  # noqa: F401
        attention,
        bit_linear,
        compile_time,
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
