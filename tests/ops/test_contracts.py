"""What every declared op owes: registration, compilation, strides, gradients, backends that agree.

An op that is added without a row in ``ARGUMENTS`` fails the first test.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch import ops
from bitnet_torch.errors import NotDifferentiableError
from bitnet_torch.ops._registry import written_arguments
from bitnet_torch.ops.layouts import preferred_layout
from tests.bits import same_bits
from tests.cases import DTYPES, activations, codes, leading, seeds, sizes, styles, weights
from tests.rounding import is_grad_input, is_grad_weight


def make_arguments(name, dtype, lead, k, n, style, seed):
    """Return valid arguments of op ``name``; the same values for the same seed."""
    x = activations((*lead, k), dtype, style, seed)
    t = codes(n, k, seed)
    packed = ops.pack_codes(t)
    granularity = ("matrix", "row")[seed % 2]
    scale = torch.rand((n,) if granularity == "row" else (), generator=generator(seed)) + 1e-3
    gain = activations((k,), dtype, "normal", seed + 1)
    up = activations((*lead, k), dtype, style, seed + 2)
    act = ("relu2", "silu")[seed // 2 % 2]
    heads = x[..., : k // 2 * 2]
    lm_head = other_dtype(n, k, dtype, seed)
    # One table for all leading dimensions but the last, as for positions.
    angles = torch.rand((*lead[-1:], k // 2), generator=generator(seed)) * 100
    bias = None if seed % 3 else torch.randn(n, generator=generator(seed)).to(dtype)
    x_q, x_scale = ops.quantize_activation(x)
    w, wide = weights(n, k, dtype, style, seed), out_dtype(dtype, seed)
    grad, kept = activations((*lead, n), dtype, style, seed + 3), DTYPES[seed % 3]
    return {
        "quantize_activation": lambda: (x,),
        "quantize_weight": lambda: (w, granularity),
        "quantize_pack_weight": lambda: (w, granularity),
        "rms_norm": lambda: (x, gain, 1e-5),
        "rms_norm_quantize": lambda: (x, gain, 1e-5),
        "glu": lambda: (x, up, act),
        "glu_norm_quantize": lambda: (x, up, gain if seed % 3 else None, 1e-5, act),
        "rope": lambda: (heads, angles.cos(), angles.sin()),
        "attention": lambda: attention_arguments(dtype, lead, k, n, style, seed),
        "rope_kv_write": lambda: cache_arguments(dtype, lead, k // 2 * 2, n, style, seed),
        "pack_codes": lambda: (t,),
        "unpack_codes": lambda: (packed, n),
        "ternary_linear": lambda: (x_q, x_scale, packed, scale, n, dtype, bias),
        "bit_linear": lambda: (x, packed, scale, n, bias),
        "bit_linear_prepacked": lambda: (x, *prepacked(packed, n), scale, n, bias),
        "ternary_linear_grad_input": lambda: (grad, packed, scale, kept),
        "ternary_linear_grad_weight": lambda: (grad, x_q, x_scale, kept),
        "top_k": lambda: (x.float(), seed % (min(k, 4) + 1)),
        "quantize_head": lambda: (lm_head,),
        "int8_linear": lambda: (x_q, x_scale, *ops.quantize_head(lm_head), wide or dtype),
        "screened_top_k": lambda: screened_arguments(x, lm_head, seed),
        "float_linear": lambda: (x, lm_head, bias, wide),
        "multi_ternary_linear": lambda: multi_arguments(x_q, x_scale, (n, n // 2 + 1), dtype, seed),
        "weight_codes_match": lambda: match_arguments(w, granularity, seed),
    }[name]()


def prepacked(packed, n):
    """Return the codes in the CPU's layout, and its name."""
    layout = preferred_layout("cpu")
    return layout.prepack(packed, n), layout.name


def match_arguments(w, granularity, seed):
    """Return a weight with its codes and scales, of which two seeds in three spoil some."""
    packed, w_scale = ops.quantize_pack_weight(w, granularity)
    if seed % 3 == 1 and packed.numel():
        packed.view(-1)[seed % packed.numel()] ^= 1
    if seed % 3 == 2 and w_scale.numel():
        w_scale.view(-1)[seed % w_scale.numel()] *= 1 + 2.0**-23
    return w, packed, w_scale, granularity


def screened_arguments(x, weight, seed):
    h, h_scale = ops.quantize_head(weight)
    bounds = ops.head_bounds(weight, h, h_scale)
    return x, weight, h, h_scale, bounds, seed % (min(len(weight), 9) + 1)


def other_dtype(n, k, dtype, seed):
    """Return weights (N, K) of a dtype that need not be x's: for bfloat16, where gradients are
    looked at, it is."""
    kinds = (dtype, dtype if dtype == torch.bfloat16 else DTYPES[seed // 5 % 3])
    return weights(n, k, dtype, "normal", seed).to(kinds[seed % 2])


def out_dtype(dtype, seed):
    return (None, torch.float32, dtype)[seed // 3 % 3]


def multi_arguments(x_q, x_scale, sizes, dtype, seed):
    """Return arguments of two matrices: one has a scale per row, one may have a bias."""
    g, layout = generator(seed), preferred_layout("cpu")
    packed = [ops.pack_codes(codes(n, x_q.shape[-1], seed + n)) for n in sizes]
    return (
        x_q,
        x_scale,
        [layout.prepack(p, n) for p, n in zip(packed, sizes, strict=True)],
        layout.name,
        [torch.rand((n,) if i == seed % 2 else (), generator=g) for i, n in enumerate(sizes)],
        list(sizes),
        dtype,
        [None, torch.randn(sizes[1], generator=g).to(dtype)] if seed % 3 else [None] * len(sizes),
    )


def cache_arguments(dtype, lead, d, n, style, seed):
    """Return tokens, tables and a cache with n slots more than there are tokens."""
    batch, tokens, narrow = 2, min(math.prod(lead), 40), 1 + n % 2
    q = activations((batch, narrow * (1 + n % 3), tokens, d), dtype, style, seed)
    k, v = (activations((batch, narrow, tokens, d), dtype, style, seed + i) for i in (1, 2))
    angles = torch.rand((1 + seed % 2, 1, tokens, d // 2), generator=generator(seed)) * 100
    cache = empty_cache((batch, narrow, tokens + n, d), dtype, seed)
    start = torch.tensor(seed % (n + 1))
    return (q, k, v, angles.cos(), angles.sin(), *cache, start)


def attention_arguments(dtype, lead, d, n, style, seed):
    """Return queries and a cache, most with n slots more, whose unseen last ones are NaN."""
    batch, tokens, narrow = 2, min(math.prod(lead), 40), 1 + n % 2
    spare, int8 = (n if seed % 3 else 0), seed % 2 == 1
    start = seed // 3 % (spare + 1)
    q = activations((batch, narrow * (1 + n % 3), tokens, d), dtype, style, seed)
    shape = (batch, narrow, tokens + spare, d)
    keys, values = (activations(shape, dtype, style, seed + i) for i in (1, 2))
    scales = None, None
    if int8:
        (keys, scale), (values, last) = map(ops.quantize_activation, (keys, values))
        scales = scale, last
    for x in scales if int8 else (keys, values):
        x[:, :, start + tokens :] = math.nan
    first = torch.tensor([0, seed % (start + tokens + 2)]) if seed % 5 else None
    return q, keys, values, *scales, torch.tensor(start), first


def empty_cache(shape, dtype, seed):
    """Return keys, values and scales; int8 for odd seeds. What is not written must stay."""
    if seed % 2 == 0:
        return *(torch.full(shape, 7.0, dtype=dtype) for _ in range(2)), None, None
    codes = (torch.full(shape, 7, dtype=torch.int8) for _ in range(2))
    return *codes, *(torch.full(shape[:-1], 0.5) for _ in range(2))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def outputs(result):
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def results(op, arguments):
    """Run an op; return its outputs and what it has written, which are copies."""
    written = written_arguments(op)
    copied = [a.clone() if i in written and a is not None else a for i, a in enumerate(arguments)]
    return (*outputs(op(*copied)), *(copied[i] for i in written if copied[i] is not None))


def all_same_bits(got, want):
    return all(same_bits(g, w) for g, w in zip(outputs(got), outputs(want), strict=True))


def agree(name, arguments, got, want):
    """Return whether two backends agree: to the bit, or both with what a float sum owes."""
    if name == "ternary_linear_grad_input":
        grad, packed, scale, _ = arguments
        t = ops.unpack_codes(packed, grad.shape[-1])
        return all(is_grad_input(dx, grad, t, scale) for dx in (*got, *want))
    if name == "ternary_linear_grad_weight":
        return all(is_grad_weight(dw, *arguments[:3]) for dw in (*got, *want))
    return all_same_bits(got, want)


NAMES = sorted(ops.all_ops())


@pytest.fixture
def compiler():
    """A compiler without memory: one test body serves more ops than one function may recompile."""
    torch.compiler.reset()
    return torch.compile


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["cpu"])
@settings(max_examples=300, deadline=None)
@given(lead=leading, k=sizes, n=sizes, style=styles, seed=seeds)
def test_backend_agrees_with_the_reference(name, backend, lead, k, n, style, seed):
    op = ops.all_ops()[name]
    for dtype in DTYPES:
        arguments = make_arguments(name, dtype, lead, k, n, style, seed)
        with ops.use_backend("reference"):
            want = results(op, arguments)
        with ops.use_backend(backend):
            got = results(op, arguments)
        assert agree(name, arguments, got, want)


@pytest.mark.parametrize("name", NAMES)
def test_default_dispatch_on_cpu_is_the_cpu_backend(name):
    op = ops.all_ops()[name]
    assert op.owner["cpu"] == "cpu"
    arguments = make_arguments(name, torch.float32, (3,), 40, 9, "normal", 1)
    assert all_same_bits(op(*arguments), op.impls["cpu"](*arguments))


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_passes(name):
    arguments = make_arguments(name, torch.float32, (5,), 64, 8, "normal", 6)
    said = torch.library.opcheck(ops.all_ops()[name].overload, arguments)
    assert len(said) >= 4
    assert set(said.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_passes_when_an_input_wants_a_gradient(name):
    # opcheck looks at autograd registration only if some input requires grad. The test that
    # runs backward is left out: it must raise, which the next test checks.
    arguments = make_arguments(name, torch.float32, (5,), 64, 8, "normal", 6)
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    said = torch.library.opcheck(
        ops.all_ops()[name].overload,
        each_tensor(lambda a: a.requires_grad_() if is_float(a) else a, arguments),
        test_utils=utilities,
    )
    assert said == dict.fromkeys(utilities, "SUCCESS")


def each_tensor(change, arguments):
    """Return arguments with ``change`` applied to every tensor, inside lists too."""
    return [
        each_tensor(change, a)
        if isinstance(a, list)
        else change(a)
        if isinstance(a, torch.Tensor)
        else a
        for a in arguments
    ]


def tensors_of(arguments):
    """Return every tensor among the arguments, inside lists too, in the order of each_tensor."""
    found = []
    each_tensor(found.append, arguments)
    return found


def is_float(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def differentiable(name):
    return ops.all_ops()[name].gradient is not None


def has_floats(name):
    """Return whether floats go in and come out: without either there is no gradient to ask for."""
    arguments = make_arguments(name, torch.float32, (5,), 64, 8, "normal", 6)
    made = outputs(ops.all_ops()[name](*arguments))
    return all(any(is_float(t) for t in some) for some in (tensors_of(arguments), made))


@pytest.mark.parametrize("name", [n for n in NAMES if not differentiable(n) and has_floats(n)])
def test_backward_is_refused_by_name_not_wrong(name):
    arguments = make_arguments(name, torch.float32, (5,), 64, 8, "normal", 6)
    arguments = each_tensor(lambda a: a.requires_grad_() if is_float(a) else a, arguments)
    result = [r for r in outputs(ops.all_ops()[name](*arguments)) if r.requires_grad][-1]
    why = f"{name} (works on integer codes|writes into a cache) and has no gradient"
    with pytest.raises(NotDifferentiableError, match=why):
        result.sum().backward()


def gradients(op, arguments):
    """Return the gradient of every float argument that is not a table, and of the output's sum."""
    arguments = [a.clone().requires_grad_() if is_trained(a) else a for a in arguments]
    trained = [a for a in arguments if is_trained(a)]
    y = op(*arguments)
    weight = torch.linspace(-1, 2, y.numel()).reshape(y.shape).to(y.dtype)
    return torch.autograd.grad(y, trained, weight)


def is_trained(value):
    # Tables (of rope) are data: they are float32 whatever the dtype of the rest.
    return is_float(value) and value.dtype == torch.bfloat16


@pytest.mark.parametrize("name", [n for n in NAMES if differentiable(n)])
def test_a_gradient_depends_on_neither_the_backend_nor_the_compiler(name, compiler):
    op = ops.all_ops()[name]
    arguments = make_arguments(name, torch.bfloat16, (5,), 64, 8, "normal", 6)
    want = gradients(op, arguments)
    assert all(g.dtype == torch.bfloat16 and bool(g.isfinite().all()) for g in want)
    for backend in ("reference", "cpu"):
        with ops.use_backend(backend):
            assert all_same_bits(gradients(op, arguments), want)
    # "eager" and "aot_eager" run the formula as it is written; what inductor makes of it is
    # bounded in each op's own tests.
    for backend in ("eager", "aot_eager"):
        compiled = compiler(op.__call__, fullgraph=True, backend=backend)
        assert all_same_bits(gradients(compiled, arguments), want)


@pytest.mark.parametrize("name", NAMES)
def test_compiles_in_one_graph_with_the_same_bits(name, compiler):
    op = ops.all_ops()[name]
    arguments = make_arguments(name, torch.bfloat16, (5,), 64, 8, "normal", 6)

    def call(*tensors):
        rest = iter(tensors)
        return op(*each_tensor(lambda a: next(rest), arguments))

    compiled = compiler(call, fullgraph=True, backend="inductor")
    want = results(op, arguments)
    written = [arguments[i] for i in written_arguments(op) if arguments[i] is not None]
    assert all_same_bits((*outputs(compiled(*tensors_of(arguments))), *written), want)


@pytest.mark.parametrize("name", NAMES)
def test_strided_inputs_are_accepted(name):
    op = ops.all_ops()[name]
    arguments = make_arguments(name, torch.float16, (4, 3), 50, 10, "normal", 3)
    strided = each_tensor(spread, arguments)
    assert any(not a.is_contiguous() for a in tensors_of(strided))
    want = results(op, arguments)
    written = [strided[i] for i in written_arguments(op) if strided[i] is not None]
    assert all_same_bits((*outputs(op(*strided)), *written), want)


def spread(x):
    """Return ``x`` as a view of every second element of a transposed, larger tensor."""
    if x.dim() == 0:
        return x
    wide = torch.zeros(*(2 * s for s in reversed(x.shape)), dtype=x.dtype)
    view = wide.permute(*reversed(range(x.dim())))[tuple(slice(None, None, 2) for _ in x.shape)]
    view.copy_(x)
    return view


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lead", [(0,), (2, 0), ()])
@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 0), (7, 6)])
def test_empty_inputs_give_empty_outputs_of_the_right_shape(name, lead, k, n):
    op = ops.all_ops()[name]
    arguments = make_arguments(name, torch.float32, lead, k, n, "normal", 3)
    with ops.use_backend("reference"):
        want = results(op, arguments)
    got = results(op, arguments)
    assert [t.shape for t in got] == [t.shape for t in want]
    assert agree(name, arguments, got, want)


@pytest.mark.parametrize("name", NAMES)
def test_contract_is_written_in_the_module_of_its_name(name):
    import sys

    doc = sys.modules[ops.all_ops()[name].__module__].__doc__
    assert "Source:" in doc
    assert "argument" in doc
    assert "shape" in doc


@settings(max_examples=20, deadline=None)
@given(m=st.integers(1, 3), seed=seeds)
def test_an_op_writes_only_into_the_inputs_that_its_schema_names(m, seed):
    for name in NAMES:
        arguments = make_arguments(name, torch.float32, (m,), 16, 8, "normal", seed)
        written = [arguments[i] for i in written_arguments(ops.all_ops()[name])]
        kept = [a.clone() for a in tensors_of(arguments)]
        for backend in ("reference", "cpu"):
            with ops.use_backend(backend):
                ops.all_ops()[name](*arguments)
        for a, b in zip(tensors_of(arguments), kept, strict=True):
            assert same_bits(a, b) or any(a is w for w in written)
