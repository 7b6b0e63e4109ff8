"""Training and deployment have the same bits, and the gradient is the straight-through one."""

import copy
import gc
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from bitnet_torch import BitLinear, PackedBitLinear
from bitnet_torch.errors import (
    ConfigurationError,
    NotDifferentiableError,
    QuantizationError,
    ShapeError,
)
from tests.bits import same_bits
from tests.cases import DTYPES, activations, seeds, styles


@settings(max_examples=150, deadline=None)
@given(
    lead=st.sampled_from([(), (0,), (1,), (7,), (2, 3), (1, 13)]),
    k=st.integers(0, 80),
    n=st.integers(0, 50),
    bias=st.booleans(),
    granularity=st.sampled_from(["matrix", "row"]),
    style=styles,
    seed=seeds,
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_training_and_packed_forms_have_the_same_bits(lead, k, n, bias, granularity, style, seed):
    for dtype in DTYPES:
        layer = BitLinear(k, n, bias=bias, dtype=dtype, granularity=granularity)
        x = activations((*lead, k), dtype, style, seed)
        assert same_bits(layer(x), layer.packed()(x))


def test_the_forms_agree_when_the_thread_count_changes_between_them(threads):
    layer, x = BitLinear(511, 257), torch.randn(19, 511)
    threads(2)
    trained = layer(x)
    threads(1)
    assert same_bits(trained, layer.packed()(x))


def test_the_forms_agree_at_the_longest_row():
    layer, x = BitLinear(131072, 5), torch.randn(3, 131072)
    assert same_bits(layer(x), layer.packed()(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_forms_agree_after_a_dtype_change_of_either(dtype):
    layer, x = BitLinear(96, 40, bias=True), torch.randn(6, 96).to(dtype)
    packed = layer.packed()
    codes, scale = packed.weight.clone(), packed.weight_scale.clone()
    packed.to(dtype)
    assert packed.bias.dtype == dtype
    assert same_bits(packed.weight, codes)
    assert same_bits(packed.weight_scale, scale)
    # The latent weights are rounded by .to(dtype), so it is the cast layer that is packed.
    layer.to(dtype)
    assert same_bits(layer(x), layer.packed()(x))


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
def test_no_cast_touches_codes_or_scale(cast):
    packed = BitLinear(33, 10, bias=True, granularity="row").packed()
    codes, scale = packed.weight.clone(), packed.weight_scale.clone()
    getattr(nn.Sequential(packed), cast)()
    assert same_bits(packed.weight, codes)
    assert same_bits(packed.weight_scale, scale)


def test_the_forms_agree_after_deepcopy_pickle_and_safetensors():
    layer, x = BitLinear(70, 30, bias=True), torch.randn(5, 70)
    packed, want = layer.packed(), layer(x)
    assert same_bits(copy.deepcopy(packed)(x), want)
    assert same_bits(pickle.loads(pickle.dumps(packed))(x), want)
    restored = BitLinear(70, 30, bias=True).packed()
    restored.load_state_dict(load(save(packed.state_dict())))
    assert same_bits(restored(x), want)
    trained = BitLinear(70, 30, bias=True)
    trained.load_state_dict(load(save(layer.state_dict())))
    assert same_bits(trained(x), want)


def test_whole_packed_module_survives_torch_save():
    packed, x = BitLinear(70, 30).packed(), torch.randn(5, 70)
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    buffer.seek(0)
    assert same_bits(torch.load(buffer, weights_only=False)(x), packed(x))


def test_a_row_alone_equals_the_row_in_a_batch():
    layer, x = BitLinear(300, 60), torch.randn(33, 300)
    assert same_bits(layer(x), torch.stack([layer(row) for row in x]))


def test_state_dict_keys_are_those_of_a_linear_layer():
    plain = nn.Linear(8, 4, bias=True)
    layer = BitLinear(8, 4, bias=True)
    layer.load_state_dict(plain.state_dict())
    assert layer.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(layer, nn.Linear)
    assert BitLinear(8, 4).bias is None


def detach_trick(x, w, bias, rows):
    """The straight-through estimator as others write it: fake-quantised floats."""
    amax = x.abs().amax(-1, keepdim=True).clamp_min(1e-5)
    x_hat = (x * (127 / amax)).round().clamp(-128, 127) * (amax / 127)
    mean = w.abs().mean(-1, keepdim=True) if rows else w.abs().mean()
    scale = mean.clamp_min(1e-5)
    w_hat = (w / scale).round().clamp(-1, 1) * scale
    return F.linear(x + (x_hat - x).detach(), w + (w_hat - w).detach(), bias)


@pytest.mark.parametrize("rows", [False, True], ids=["matrix", "row"])
@pytest.mark.parametrize("shape", [(64, 512), (2, 9, 33), (1, 128)])
def test_gradients_equal_the_detach_trick_within_one_part_in_1e5(rows, shape):
    layer = BitLinear(shape[-1], 37, bias=True, granularity="row" if rows else "matrix")
    x = torch.randn(shape, requires_grad=True)
    g = torch.randn(*shape[:-1], 37)
    leaves = (x, layer.weight, layer.bias)
    got = torch.autograd.grad(layer(x), leaves, g)
    want = torch.autograd.grad(detach_trick(*leaves, rows), leaves, g)
    for a, b in zip(got, want, strict=True):
        assert ((a - b).norm() / b.norm()).item() < 1e-5


def test_gradients_are_the_products_of_the_docstring_in_float64():
    layer, x = BitLinear(50, 20), torch.randn(8, 50, requires_grad=True)
    g = torch.randn(8, 20)
    dx, dw = torch.autograd.grad(layer(x), (x, layer.weight), g)
    packed = layer.packed()
    from bitnet_torch.ops import quantize_activation, unpack_codes

    t = unpack_codes(packed.weight, 20).double()
    x_q, x_scale = quantize_activation(x.detach())
    exact_dx = (g.double() * packed.weight_scale.double()) @ t
    exact_dw = g.double().T @ (x_q.double() * x_scale.double()[:, None])
    # A float32 dot product of n terms is off by at most (n + 2) ulps of the sum of magnitudes.
    bound_dx = 22 * 2.0**-24 * ((g.double() * packed.weight_scale.double()).abs() @ t.abs())
    bound_dw = 10 * 2.0**-24 * (g.double().abs().T @ x.detach().double().abs() * 1.01)
    assert ((dx.double() - exact_dx).abs() <= bound_dx + 1e-30).all()
    assert ((dw.double() - exact_dw).abs() <= bound_dw + 1e-30).all()


@pytest.mark.parametrize("wants", [(True, False), (False, True)])
def test_only_the_gradients_that_are_wanted_are_made(wants):
    layer, x = BitLinear(16, 8), torch.randn(4, 16, requires_grad=wants[0])
    layer.weight.requires_grad_(wants[1])
    layer(x).sum().backward()
    assert (x.grad is not None, layer.weight.grad is not None) == wants


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "k", "n"), [(64, 512, 256), (1, 33, 7), (130, 65, 129)])
@pytest.mark.parametrize("rows", [False, True], ids=["matrix", "row"])
def test_live_bytes_between_forward_and_backward_stay_within_the_formula(dtype, m, k, n, rows):
    layer = BitLinear(k, n, dtype=dtype, granularity="row" if rows else "matrix")
    x = torch.randn(m, k, dtype=dtype, requires_grad=True)
    layer(x)  # what kernels work in is lent to them by the pool, which keeps it
    gc.collect()
    before = storages()
    y = layer(x)
    gc.collect()
    live = storages()
    saved = {p: size for p, size in live.items() if p not in before}
    saved.pop(y.untyped_storage().data_ptr())
    budget = m * k + 4 * m + -(-n // 4) * k + 4 * (n if rows else 1) + 256
    assert sum(saved_for_backward(y).values()) + sum(saved.values()) > 0
    assert sum({**saved, **saved_for_backward(y)}.values()) <= budget


def storages():
    """Return bytes by address of every storage that Python can reach."""
    found = {}
    for o in gc.get_objects():
        if type(o) in (torch.Tensor, nn.Parameter):
            storage = o.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def saved_for_backward(y):
    """Return bytes by address of the storages that the graph node keeps: Python sees no others."""
    tensors = y.grad_fn.saved_tensors
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_input_of_both_forms(dtype):
    layer, x = BitLinear(64, 32), torch.randn(5, 64)
    with torch.autocast("cpu", dtype=dtype):
        y, p = layer(x), layer.packed()(x)
    assert y.dtype == dtype
    assert same_bits(y, p)
    assert same_bits(y, layer(x.to(dtype)))


def test_backward_inside_autocast_still_multiplies_in_float32():
    layer, x = BitLinear(64, 32), torch.randn(5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x).float().sum().backward()
        inside, layer.weight.grad = layer.weight.grad, None
        y = layer(x).float().sum()
    y.backward()
    assert same_bits(inside, layer.weight.grad)


def test_checkpointing_gives_the_same_bits_and_gradients():
    layer, x = BitLinear(64, 32), torch.randn(5, 64, requires_grad=True)
    y = layer(x)
    want = torch.autograd.grad(y.square().sum(), (x, layer.weight))
    z = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    got = torch.autograd.grad(z.square().sum(), (x, layer.weight))
    assert same_bits(y, z)
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpointed_stack_under_autocast_has_the_gradients_of_a_plain_one(use_reentrant):
    torch.manual_seed(0)
    model = nn.Sequential(BitLinear(32, 48), nn.ReLU(), BitLinear(48, 16, bias=True))
    x = torch.randn(7, 32, requires_grad=True)

    def gradients(run):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = run(x)
        y.float().square().sum().backward()
        leaves = [x, *model.parameters()]
        made = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        return [y, *made]

    want = gradients(model)
    got = gradients(
        lambda x: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=use_reentrant)
    )
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("backward", ["float", "int8"])
def test_a_grad_scaler_skips_a_step_that_overflowed_and_takes_the_next(backward):
    layer, x = BitLinear(32, 16, backward=backward), torch.randn(4, 32)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, growth_interval=1000)
    before = layer.weight.detach().clone()
    for factor in (2.0**60, 1.0):
        optimizer.zero_grad()
        scaler.scale((layer(x) * factor).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        changed = not torch.equal(layer.weight, before)
        # 2^160 does not fit float32: the gradient is infinite, the scale is halved, no step.
        assert changed == (factor == 1.0)
        scaler.update(2.0**10)
    assert bool(layer.weight.isfinite().all())


def test_what_a_model_saves_of_its_linear_inputs_is_0_26_of_the_floats_at_most():
    """Counted by autograd's own hooks: codes and scales, and nothing of the float inputs."""
    model = nn.Sequential(*(BitLinear(256, 256) for _ in range(4)))
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    x = torch.randn(64, 256)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x).sum().backward()
    codes = [t for t in kept if t.dtype == torch.uint8]
    inputs = [t for t in kept if t.dtype != torch.uint8 and t.dim()]
    assert sum(t.nbytes for t in codes) == 4 * 64 * 256
    assert {t.dtype for t in inputs} == {torch.int8, torch.float32}
    assert sum(t.nbytes for t in inputs) <= 0.26 * 4 * x.nbytes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_forms_compile_in_one_graph_with_the_same_bits(dtype):
    layer, x = BitLinear(64, 48, bias=True), torch.randn(4, 64).to(dtype)
    want = layer(x)
    assert same_bits(torch.compile(layer, fullgraph=True)(x), want)
    with torch.inference_mode():
        assert same_bits(torch.compile(layer.packed(), fullgraph=True)(x), want)


def test_compiled_training_has_the_gradients_of_eager_training():
    layer, x = BitLinear(64, 48), torch.randn(4, 64, requires_grad=True)
    want = torch.autograd.grad(layer(x).square().sum(), (x, layer.weight))
    compiled = torch.compile(layer, fullgraph=True, backend="inductor")
    got = torch.autograd.grad(compiled(x).square().sum(), (x, layer.weight))
    for a, b in zip(got, want, strict=True):
        # Inductor may order a float32 sum of 48 terms differently.
        assert ((a - b).abs() <= 64 * 2.0**-24 * (b.abs() + b.abs().max())).all()


def test_training_sees_every_change_of_the_weight():
    layer, x = BitLinear(32, 16), torch.randn(3, 32)
    before = layer(x)
    with torch.no_grad():
        layer.weight.data.neg_()
    assert same_bits(layer(x), torch.where(before == 0, before, -before))


def test_a_step_of_gradient_descent_lowers_the_loss():
    layer = BitLinear(32, 16)
    x, target = torch.randn(64, 32), torch.randn(64, 16) * 0.3
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_student_recovers_the_codes_of_a_ternary_teacher():
    teacher = torch.randint(-1, 2, (16, 32)).float()
    x = torch.randn(512, 32)
    student = BitLinear(32, 16)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        F.mse_loss(student(x), x @ teacher.T).backward()
        optimizer.step()
    from bitnet_torch.ops import quantize_weight

    t, _ = quantize_weight(student.weight.detach())
    assert (t == teacher).float().mean().item() >= 0.99


def test_a_weight_that_is_not_finite_stops_training_with_its_index():
    layer = BitLinear(8, 4)
    with torch.no_grad():
        layer.weight[2, 5] = float("nan")
    with pytest.raises(QuantizationError, match=r"weight \[2, 5\] is nan"):
        layer(torch.randn(1, 8))


def test_backward_through_the_packed_form_is_refused():
    packed, x = BitLinear(8, 4).packed(), torch.randn(2, 8, requires_grad=True)
    with pytest.raises(NotDifferentiableError, match="train with BitLinear"):
        packed(x).sum().backward()


@pytest.mark.parametrize(("k", "n"), [(8, 0), (0, 8)])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_inputs_or_outputs_have_gradients_as_linear_layers_have(k, n):
    layer, x = BitLinear(k, n, bias=True), torch.randn(3, k, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape
    assert layer.weight.grad.shape == (n, k)


def test_a_row_that_no_exact_sum_can_hold_is_refused_at_construction():
    with pytest.raises(ShapeError, match="K=131073"):
        BitLinear(131073, 1)


def test_both_forms_run_on_the_meta_device():
    layer, x = BitLinear(8, 4, device="meta"), torch.empty(2, 8, device="meta")
    assert layer(x).shape == (2, 4)
    layer(x).sum().backward()
    assert layer.weight.grad.shape == (4, 8)
    assert BitLinear(8, 4).packed().to("meta")(x).shape == (2, 4)


def test_an_unknown_granularity_is_refused():
    with pytest.raises(ConfigurationError, match=r"granularity must be one of .*'group'"):
        BitLinear(8, 4, granularity="group")


def test_packed_takes_over_the_training_flag():
    assert not BitLinear(8, 4).eval().packed().training
    assert isinstance(BitLinear(8, 4).packed(), PackedBitLinear)
