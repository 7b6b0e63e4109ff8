"""What the host shim refuses: what a Mac would reject, or would compute wrong."""

import pytest
import torch

from tests.metal_host.errors import MetalLaunchError, MetalSourceError
from tests.metal_host.library import compile_shader

pytestmark = pytest.mark.metal_host

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"
OUT = "device float* o [[buffer(0)]], uint t [[thread_position_in_grid]]"
BFLOAT = "device bfloat* o [[buffer(0)]], uint t [[thread_position_in_grid]]"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


def kernel(body, parameters=OUT, before=""):
    return f"{HEAD}{before}\n[[kernel]] void k({parameters}) {{\n{body}\n}}\n"


# The wrong source, and a part of the reason that must be given.
SOURCES = {
    "a parameter without an address space": (
        kernel(
            "float x = 1; o[t] = f(&x);", before="inline float f(const float* p) { return p[0]; }"
        ),
        "needs an address space",
    ),
    "a device pointer for a thread pointer": (
        kernel("o[t] = f(o);", before="inline float f(thread const float* p) { return p[0]; }"),
        "no matching function",
    ),
    "a device pointer for a threadgroup pointer": (
        kernel("threadgroup float* p = o; p[t] = 1;"),
        "cannot initialize a variable of type 'threadgroup float",
    ),
    "a cast that drops the address space": (
        kernel("float4 v = *reinterpret_cast<float4*>(o); o[t] = v.x;"),
        "reinterpret_cast",
    ),
    "a C cast that changes the address space": (
        kernel("thread float* p = (thread float*)o; o[t] = p[0];"),
        "changes the address space",
    ),
    "a write to constant memory": (
        kernel("c[0] += o[t];", f"constant float* c [[buffer(1)]], {OUT}"),
        "not assignable|cannot assign|read-only",
    ),
    "a write through a pointer to const": (
        kernel("c[t] = o[t];", f"device const float* c [[buffer(1)]], {OUT}"),
        "read-only",
    ),
    "a scalar parameter by value": (kernel("o[t] = n;", f"{OUT}, int n"), "neither a pointer"),
    "a variable of the program that is not constant": (
        kernel("o[t] = g;", before="float g = 1.0f;"),
        "must be in the constant space",
    ),
    "double": (kernel("double d = 1; o[t] = d;"), "'double' is not supported"),
    "a function that does not exist": (kernel("o[t] = simd_summ(1.0f);"), "undeclared identifier"),
    "an attribute that does not exist": (
        kernel("o[t] = 1;", "device float* o [[buffer(0)]], uint t [[thread_pos_in_grid]]"),
        "unknown attribute",
    ),
    "positions of two widths": (
        kernel("o[t] = g.x;", f"{OUT}, uint2 g [[threads_per_grid]]"),
        "one type",
    ),
    "simd_sum of 64 bits": (kernel("o[t] = float(simd_sum(long(t)));"), "no 64-bit"),
    "simd_sum of bfloat": (
        kernel("o[t] = float(simd_sum(bfloat(1.0f)));"),
        "no 64-bit, bool or bfloat",
    ),
    "a shuffle of 64 bits": (kernel("o[t] = float(simd_shuffle_xor(ulong(t), 1));"), "no 64-bit"),
    "min of two types": (kernel("int i = 3; o[t] = min(i, t);"), "no matching function"),
    "a vector of too few components": (
        kernel("float4 v = float4(1.0f, 2.0f, 3.0f); o[t] = v.x;"),
        "wrong number of components",
    ),
    "a vector converted silently": (
        kernel("char4 c = char4(1, 2, 3, 4); int4 i = c; o[t] = i.x;"),
        "cannot initialize|incompatible",
    ),
    "a float stored as bfloat silently": (kernel("float x = 1; o[t] = x;", BFLOAT), "to bfloat"),
    "a half stored as bfloat silently": (kernel("half x = 1; o[t] = x;", BFLOAT), "bfloat"),
    "too much threadgroup memory": (
        kernel(f"threadgroup float b[9000]; b[t] = 1; {BARRIER} o[t] = b[t];"),
        "36000 bytes of threadgroup memory",
    ),
    "threadgroup memory in a helper": (
        kernel("f(); o[t] = 1;", before="inline void f() { threadgroup float b[4]; b[0] = 1; }"),
        "only be declared in a kernel",
    ),
    "threadgroup memory as an argument": (
        kernel("o[t] = 1;", f"threadgroup float* s [[threadgroup(0)]], {OUT}"),
        "unknown attribute",
    ),
    "a function constant": (
        kernel("o[t] = F;", before="constant bool F [[function_constant(0)]];"),
        "cannot be set through compile_shader",
    ),
    "a matrix of int8": (
        kernel("simdgroup_matrix<char, 8, 8> m; o[t] = 1;"),
        "half, bfloat or float only",
    ),
    "recursion": (
        kernel("o[t] = f(3);", before="inline int f(int n) { return n ? f(n - 1) : 0; }"),
        "recursion",
    ),
    "exceptions": (kernel("try { o[t] = 1; } catch (...) {}"), "not supported"),
    "a call of the C library": (kernel("float x; memcpy(&x, &x, 4); o[t] = x;"), "memcpy"),
    "a kernel that returns a value": (
        f"{HEAD}[[kernel]] int k({OUT}) {{ o[t] = 1; return 0; }}",
        "returns void",
    ),
    "text that is not ASCII": ("// 2 × 3\n" + kernel("o[t] = 1;"), "ASCII"),  # noqa: RUF001
    "no metal_stdlib": (
        kernel("o[t] = 1;").replace("<metal_stdlib>", "<metal_math>"),
        "is missing",
    ),
    "an uninitialised variable": (kernel("float x; o[t] = x;"), "uninitialized"),
}


@pytest.mark.parametrize("mistake", SOURCES)
def test_source_with_a_mistake_is_refused_with_the_reason(mistake):
    source, reason = SOURCES[mistake]
    with pytest.raises(MetalSourceError, match=reason):
        compile_shader(source).k  # noqa: B018


LANES = f"{OUT}, uint l [[thread_index_in_simdgroup]], uint s [[simdgroup_index_in_threadgroup]]"
# A kernel on 64 floats, its threads, their group, and a part of the reason.
LAUNCHES = {
    "a missing barrier": (
        kernel("threadgroup float b[64]; b[t] = t; o[t] = b[63 - t];"),
        (64, 64, "thread schedule"),
    ),
    "a barrier of the simdgroup only": (
        kernel(
            "threadgroup float b[2]; float v = simd_sum(float(t)); if (l == 0) b[s] = v;\n"
            "simdgroup_barrier(mem_flags::mem_threadgroup); o[t] = b[0] + b[1];",
            LANES,
        ),
        (64, 64, "thread schedule"),
    ),
    "a write after a read of others": (
        kernel(
            f"threadgroup float b[64]; b[t] = t; {BARRIER} float v = b[63 - t]; b[t] = 0; o[t] = v;"
        ),
        (64, 64, "thread schedule"),
    ),
    "threadgroups that write one place": (
        kernel("o[0] = g;", f"{OUT}, uint g [[threadgroup_position_in_grid]]"),
        (64, 32, "thread schedule"),
    ),
    "threadgroup memory that nobody wrote": (
        kernel(f"threadgroup float b[64]; if (t < 32) b[t] = 1; {BARRIER} o[t] = b[t];"),
        (64, 64, "thread schedule"),
    ),
    "a result that flushing changes": (
        kernel("o[t] = o[t] * 1e-30f * 1e-10f * 1e10f;"),
        (64, 64, "depends on the flushing"),
    ),
    "a barrier that some threads skip": (
        kernel(f"o[t] = 0; if (t < 40) {BARRIER} o[t] += 1;"),
        (64, 64, "not reached by 24 threads"),
    ),
    "a barrier after a return": (
        kernel(f"if (t >= 50) return; {BARRIER} o[t] = 1;"),
        (64, 64, "not reached by 14 threads"),
    ),
    "a simd operation after a return": (
        kernel("if (t >= 50) return; o[t] = simd_sum(1.0f);"),
        (64, 64, "after a lane returned"),
    ),
    "lanes in two simd operations": (
        kernel(
            "float v; if (t & 1)\n v = simd_sum(1.0f);\n else\n v = simd_max(2.0f);\n o[t] = v;"
        ),
        (64, 64, "divergent"),
    ),
    "a read past the end": (kernel("o[t] = o[t + 64];"), (64, 64, "out-of-bounds")),
    "a write past the end": (kernel("o[t + 60] = 1;"), (64, 64, "out-of-bounds|wrote byte")),
    "a write before the start": (kernel("o[int(t) - 1] = 1;"), (64, 64, "wrote byte -4")),
    "no guard in the last group": (kernel("o[t] = 1;"), (96, 32, "out-of-bounds|wrote byte")),
    "an index past an array": (
        kernel(f"threadgroup float b[32]; b[t] = t; {BARRIER} o[t] = b[t & 31];"),
        (64, 64, "array index out of bounds"),
    ),
    "a vector that is not aligned": (
        kernel("float4 v = *(device const float4*)(o + 1); o[t] = v.x;"),
        (1, 1, "misaligned"),
    ),
    "a shift that is too far": (
        kernel("uint n = t + 20; o[t] = float(1 << n);"),
        (64, 64, "shift"),
    ),
    "an integer that overflows": (
        kernel("int n = 2147483600; o[t] = float(n + int(t));"),
        (64, 64, "signed overflow"),
    ),
    "a float that no char holds": (
        kernel("o[t] = float(char(float(t) * 10.0f));"),
        (64, 64, "out of an integer's range"),
    ),
    "a shuffle from a lane that is not there": (
        kernel("o[t] = simd_shuffle(float(l), ushort(l + 8));", LANES),
        (64, 64, "a lane that is not there"),
    ),
}


@pytest.mark.parametrize("mistake", LAUNCHES)
def test_a_kernel_with_a_mistake_is_caught_when_it_runs(mistake):
    source, (threads, group, reason) = LAUNCHES[mistake]
    library = compile_shader(source)
    with pytest.raises(MetalLaunchError, match=reason):
        library.k(torch.ones(64), threads=(threads,), group_size=(group,))


GOOD = kernel(
    "if (t < n) o[t] = half(n);",
    "device half* o [[buffer(0)]], constant uint& n [[buffer(1)]],"
    "uint t [[thread_position_in_grid]]",
)
CAST = {"arg_casts": {1: "int32"}}
# How a host calls it wrongly, and a part of the reason.
CALLS = {
    "an int64 for a uint": (lambda k, o: k(o, 64), "the host sends 'i8'"),
    "another dtype": (lambda k, o: k(o.float(), 64, **CAST), "the tensor is torch.float32"),
    "a strided tensor": (
        lambda k, o: k(torch.zeros(64, 2, dtype=torch.half)[:, 0], 64, **CAST),
        "the tensor is strided",
    ),
    "a buffer too few": (lambda k, o: k(o), r"buffers \[1\] are not bound"),
    "a buffer too many": (lambda k, o: k(o, 64, o, **CAST), "argument 2 is not used"),
    "None": (lambda k, o: k(o, None), "Unsupported argument type NoneType"),
    "a reference to too few bytes": (
        lambda k, o: k(o, 64, arg_casts={1: "int16"}),
        "the host sends 'i2'",
    ),
    "an empty grid": (lambda k, o: k(o, 64, threads=(0,), group_size=(1,), **CAST), "is empty"),
    "two ranks": (
        lambda k, o: k(o, 64, threads=(64, 1), group_size=(64,), **CAST),
        "must have one length",
    ),
}


@pytest.mark.parametrize("mistake", CALLS)
def test_a_host_that_calls_wrongly_is_told(mistake):
    call, reason = CALLS[mistake]
    function = compile_shader(GOOD).k
    with pytest.raises(MetalLaunchError, match=reason):
        call(function, torch.zeros(64, dtype=torch.half))


def test_what_pytorch_refuses_is_refused_with_its_own_exceptions():
    library = compile_shader(GOOD)
    out = torch.zeros(64, dtype=torch.half)
    with pytest.raises(ValueError, match="Threadgroup size exceeds 1024"):
        library.k(out, 64, threads=(4096,), group_size=(2048,), **CAST)
    with pytest.raises(RuntimeError, match="Failed to create function state object for: nope"):
        library.nope(out)
    with pytest.raises(SyntaxError):
        compile_shader("#include <metal_stdlib>\n[[kernel]] void k(")


def test_a_right_call_runs():
    out = torch.zeros(64, dtype=torch.half)
    library = compile_shader(GOOD)
    library.k(out, 50, **CAST)
    assert out.tolist() == [50.0] * 50 + [0.0] * 14
    assert dir(library) == ["k"]


CONTRACTED = "o[t] = o[t] * o[t] - 1.00000024f;"


@pytest.mark.parametrize("pragma", ["", "#pragma METAL fp contract(off)"])
def test_a_product_beside_a_sum_is_fused_unless_the_source_forbids_it(pragma):
    out = torch.full((1,), 1.00000012)
    compile_shader(kernel(CONTRACTED, before=pragma)).k(out)
    # (1 + e)^2 is 1 + 2e + e^2; e^2 survives only in a fused operation.
    assert (float(out) == 2.0**-46) is not bool(pragma)


def test_what_is_compiled_once_is_found_again_and_is_not_shared_with_another_text():
    first, again = compile_shader(GOOD), compile_shader(GOOD)
    other = compile_shader(GOOD.replace("half(n)", "half(1)"))
    assert first.folder == again.folder != other.folder
