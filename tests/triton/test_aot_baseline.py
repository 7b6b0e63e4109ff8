"""Every kernel as compiled ahead of time, against limits and what was committed.

``aot_baseline.json`` is written by ``python -m tests.triton.aot`` with the Triton that it names;
another version of the compiler is held to the limits alone. Three targets are compared here, all
eight by ``python -m tests.triton.aot --check``.
"""

import json
import sys

import pytest

from tests.triton.aot import ARCHS, FILE, KERNELS, complaints, python, report, row, worse, wrong
from tests.triton.conftest import EMULATED
from tests.triton.gemm_code import check_gemm_code

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")

# Compiled in the quick suite; the others take minutes.
QUICK = (*EMULATED, "_quantize_rows_kernel")


def test_some_kernels_are_what_was_committed(decode_code, aot_cache):
    # The fixture has compiled most of them.
    assert len(decode_code) == 10
    assert complaints("sm_80", aot_cache, QUICK) == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_every_kernel_is_what_was_committed(arch, tmp_path):
    entries = report("--arch", arch, "--float", "bf16", cache=tmp_path)
    assert worse(entries, arch) == {}
    check_gemm_code(entries, arch)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("arch", ["sm_100", "sm_120"])
def test_the_main_loops_of_decoding_are_what_was_committed(arch, tmp_path):
    assert complaints(arch, tmp_path, KERNELS) == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_float32_keeps_to_its_registers(tmp_path):
    # Those whose values of x take twice the registers.
    names = ("_attention_kernel", "_quantize_rows_kernel", "_float_linear_kernel")
    named = [argument for name in names for argument in ("--kernel", name)]
    entries = report("--arch", "sm_80", "--float", "fp32", *named, cache=tmp_path)
    assert [bad for entry in entries if (bad := wrong(entry, None))] == []


def test_every_target_has_the_same_kernels_in_the_baseline():
    kernels = json.loads(FILE.read_text())["kernels"]
    targets = {name: {arch for rows in kernels[name].values() for arch in rows} for name in kernels}
    nvidia = {arch for arch in ARCHS if arch.startswith("sm_")}
    few = {"_ternary_few_kernel": nvidia, "_ternary_wgmma_kernel": {"sm_90"}}
    gemm = set(ARCHS) - {"sm_90"}
    for name, archs in targets.items():
        expected = few.get(name, gemm if name == "_ternary_gemm_kernel" else set(ARCHS))
        assert archs == expected, name


GOOD = {
    "arch": "sm_80",
    "kernel": KERNELS[0],
    "registers": 60,
    "shared": 0,
    "instructions": 800,
    "stack": 0,
    "fused": 0,
    "float_sums": False,
    "matrix": True,
    "approximate": False,
    "products": {"IDP": 64},
    "loop": 140,
    "barriers": 0,
    "loads": {"16": 8},
    "per_weight": 0.55,
}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"stack": 8}, "spills"),
        ({"fused": 1}, "a fused multiply-add"),
        ({"approximate": True}, "an approximate division"),
        ({"products": {}}, "no products on their instructions"),
        ({"products": {"IDP": 63}}, "a lost product instruction"),
        ({"products": {"IMAD": 64}}, "a lost product instruction"),
        ({"loop": 0}, "no main loop"),
        ({"barriers": 1}, "barriers or shared memory in the main loop"),
        ({"loads": {"8": 1, "16": 8}}, "a load of other than 16 bytes"),
        ({"loads": {"8": 1, "16": 8}}, "a narrower load"),
        ({"per_weight": 0.61}, "too many instructions"),
        ({"per_weight": 0.58}, "more instructions than committed"),
    ],
)
def test_each_way_to_be_worse_is_noticed(change, complaint):
    assert wrong(GOOD, row(GOOD)) == []
    assert complaint in wrong(GOOD | change, row(GOOD))


def test_a_kernel_without_a_main_loop_is_held_to_all_of_its_instructions():
    whole = GOOD | {"kernel": "_glu_kernel", "per_weight": None, "loop": 0}
    assert wrong(whole, row(whole)) == []
    assert wrong(whole | {"instructions": 841}, row(whole)) == ["more instructions than committed"]
    assert wrong(whole | {"float_sums": True, "fused": 1}, row(whole)) == []


def test_what_nothing_compiles_for_is_refused_by_name(tmp_path):
    for arguments, reason in (
        (("--arch", "sm_75"), "error: sm_75 is older than sm_80"),
        (("--arch", "turing"), "error: arch must be like sm_90 or gfx942, got 'turing'"),
        (("--kernel", "_warp_kernel"), "error: unknown kernel _warp_kernel"),
    ):
        result = python("-m", "bitnet_torch_triton.aot", *arguments, cache=tmp_path)
        assert result.returncode == 2
        assert result.stderr.startswith(reason)
    result = python("-m", "bitnet_torch_triton.aot", cache=tmp_path, interpret=True)
    assert result.returncode == 2
    assert "TRITON_INTERPRET" in result.stderr
