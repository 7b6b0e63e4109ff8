"""SIMD kernels for CPUs: exact ternary products, quantisers and packings in C++.

The kernels are a plain shared library that the installation builds and ctypes loads; the
launchers of this package check memory layout and pass pointers. The library picks the
fastest instruction set of the machine when it is loaded (:mod:`bitnet_torch.cpu.isa`).
"""

from __future__ import annotations


def load() -> None:
    """Load the library and register its kernels for the ``cpu`` device.

    Raises:
        BackendUnavailableError: The installation built no library; the message says why.
    """
    # Here and not at the top: importing a launcher loads the library.
    from bitnet_torch.cpu import (  # noqa: F401
        attention,
        bit_linear,
        decoder_step,
        float_linear,
        glu,
        glu_norm_quantize,
        head_bounds,
        int8_linear,
        multi_ternary_linear,
        neuron_rows,
        pack_codes,
        panel8,
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
