"""What the machine code of the product of many tokens owes: codes unpacked once, by words."""

# Kernel, and the instruction that multiplies from 16 tokens up.
SERVED = {
    "sm_90": ("_ternary_wgmma_kernel", "IGMMA."),
    "sm_100": ("_ternary_gemm_kernel", "UTCIMMA"),
    "sm_": ("_ternary_gemm_kernel", "IMMA."),
    "gfx9": ("_ternary_gemm_kernel", "v_mfma_i32"),
    "gfx11": ("_ternary_gemm_kernel", "v_wmma_i32"),
}


def check_gemm_code(entries, arch):
    """Check the entries of an architecture, as the report prints them."""
    kernel, instruction = next(row for name, row in SERVED.items() if arch.startswith(name))
    served = [e for e in entries if e["kernel"] == kernel]
    assert len(served) >= 3
    for e in served:
        assert any(name.startswith(instruction) for name in e["products"]), e
        if arch.startswith("sm_"):
            quads = e["loop"] / e["per_weight"] / 4
            # Unpacked twice, or byte by byte, this would be 3.5 and more.
            assert (e["mix"]["LOP3"] + e["mix"]["SHF"]) / quads <= 1.9, e
            assert "PRMT" not in e["mix"], e
            # 16 tokens by 64 columns are 8 bytes for each of 128 threads.
            assert set(e["loads"]) <= {"8", "16"}, e
            assert e["waits"] == (1 if arch == "sm_90" else 0), e
