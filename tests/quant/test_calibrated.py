"""Codes and scales chosen in the metric of what a layer is given."""

import pytest
import torch
from torch import nn

from bitnet_torch.errors import ConfigurationError, QuantizationError, ShapeError
from bitnet_torch.quant import ExactL2, QuantizedWeight, quantize_on_data
from bitnet_torch.quant.calibrated import _Best, _column_by_column, _damping, _fitted, _usable
from bitnet_torch.quant.gram import gram_matrices
from tests.bits import same_bits

PARTS = [("matrix", None), ("row", None), ("group", 64)]


def inputs(rows=600, k=192, seed=0):
    """Correlated rows around a common mean, as those of a language model are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=generator) * 0.2 + torch.eye(k)
    return torch.randn(rows, k, generator=generator) @ mix + torch.randn(k, generator=generator)


def weights(n=24, k=192):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(1))


def gram_of(x):
    return x.T @ x / len(x)


def output_error(w, q, x):
    return (x.double() @ (w - q.dense()).double().T).square().sum(0)


@pytest.mark.parametrize("parts", PARTS, ids=[p[0] for p in PARTS])
def test_outputs_are_nearer_than_those_of_exact_l2_and_codes_stay_ternary(parts):
    x, w = inputs(), weights()
    got = quantize_on_data(w, gram_of(x), *parts)
    plain = ExactL2(*parts).quantize(w)
    assert set(got.codes.unique().tolist()) == {-1, 0, 1}
    assert got.codes.dtype == torch.int8
    assert got.scale.shape == plain.scale.shape
    assert got.scale.dtype == torch.float32
    better, before = (output_error(w, q, x).sum().item() for q in (got, plain))
    assert better < 0.75 * before


def test_no_row_is_worse_on_the_inputs_than_exact_l2():
    # Few inputs say little; the rows that they would mislead keep what they had.
    x, w = inputs(rows=40, k=32), weights(200, 32)
    damped = torch.cat([x / len(x) ** 0.5, torch.eye(32) * (0.01 * gram_of(x).trace() / 32) ** 0.5])
    got, plain = quantize_on_data(w, gram_of(x), "row"), ExactL2("row").quantize(w)
    after, before = (output_error(w, q, damped) for q in (got, plain))
    assert bool((after <= before * (1 + 2**-20)).all())


def test_without_correlations_codes_are_those_nearest_to_the_weights():
    w = weights(8, 160)
    start = ExactL2("row").quantize(w)
    h = torch.eye(160, dtype=torch.float64) * 3
    got = _column_by_column(w.double(), h, start)
    scale = start.scale[:, None]
    assert torch.equal(got.codes, (w / scale).round().clamp(-1, 1).to(torch.int8))


def test_a_column_makes_up_for_the_one_before_it():
    # Both inputs are nearly one: 0.4 + 0.4 of a quantum is nearest to one quantum in all.
    h = torch.tensor([[1.0, 0.99], [0.99, 1.0]], dtype=torch.float64)
    w = torch.tensor([[0.4, 0.4, 0.0]], dtype=torch.float64)
    h = torch.block_diag(h, torch.eye(1, dtype=torch.float64))
    start = ExactL2("row").quantize(torch.tensor([[1.0, 0.0, 0.0]]))
    assert _column_by_column(w, h, start).codes.tolist() == [[0, 1, 0]]


def test_what_a_column_hands_on_is_the_regression_of_the_next_on_it():
    # 0.29 and 0.5 of the 0.4 that the first one loses make 0.49 of a quantum: not yet one.
    h = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    start = QuantizedWeight(torch.zeros(1, 2, dtype=torch.int8), torch.ones(1))
    for second, code in ((0.29, 0), (0.31, 1)):
        w = torch.tensor([[0.4, second]], dtype=torch.float64)
        assert _column_by_column(w, h, start).codes.tolist() == [[0, code]]


def test_the_best_candidate_stays_whatever_comes_after_it():
    w, h = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), torch.eye(2).double()

    def candidate(first, second):
        return QuantizedWeight(torch.eye(2, dtype=torch.int8), torch.tensor([first, second]))

    best = _Best(w, h, candidate(0.5, 0.5))
    for scales in ((0.9, 0.4), (0.8, 0.8), (0.7, 0.9)):
        best.offer(candidate(*scales))
    assert best.choice.scale.tolist() == [pytest.approx(0.9), pytest.approx(0.9)]


def test_codes_that_were_chosen_on_the_data_have_the_scales_that_fit_them():
    x, w = inputs(), weights()
    gram = gram_of(x).double()
    got, plain = quantize_on_data(w, gram), ExactL2("row").quantize(w)
    changed = (got.codes != plain.codes).any(1)
    assert bool(changed.all())
    fitted = _fitted(w.double(), gram + torch.eye(192) * _damping(gram), got)
    torch.testing.assert_close(fitted.scale, got.scale, rtol=2**-22, atol=0)


def test_a_group_without_codes_leaves_the_fit_of_the_others_alone():
    codes = torch.tensor([1, -1, 1, 1, 0, 0, 0, 0], dtype=torch.int8).expand(3, 8)
    x, w = inputs(50, 8).double(), 2 * codes + weights(3, 8).double() * 0.1
    got = _fitted(w, x.T @ x, QuantizedWeight(codes, torch.ones(3, 2))).scale
    alone = (x @ codes[0].double()) @ (x @ w.T) / (x @ codes[0].double()).square().sum()
    torch.testing.assert_close(got[:, 0].double(), alone, rtol=2**-22, atol=0)


def test_what_is_no_scale_is_not_taken_over():
    fitted = torch.tensor([[2.0], [-1.0], [float("nan")], [0.0]], dtype=torch.float64)
    assert _usable(fitted, torch.full((4,), 7.0)).tolist() == [2.0, 7.0, 7.0, pytest.approx(1e-5)]


def test_blocks_change_nothing_but_the_order_of_sums(monkeypatch):
    x, w = inputs(), weights()
    whole = quantize_on_data(w, gram_of(x), "row")
    monkeypatch.setattr("bitnet_torch.quant.calibrated.BLOCK", 7)
    pieces = quantize_on_data(w, gram_of(x), "row")
    # Float64 sums in another order; a weight would have to lie on a threshold to 1e-12.
    assert torch.equal(whole.codes, pieces.codes)
    torch.testing.assert_close(whole.scale, pieces.scale, rtol=2**-22, atol=0)


@pytest.mark.parametrize("parts", PARTS, ids=[p[0] for p in PARTS])
def test_fitted_scales_are_those_of_least_squares_on_the_inputs(parts):
    x, w = inputs().double(), weights().double()
    start = ExactL2(*parts).quantize(w.float())
    got = _fitted(w, x.T @ x, start).scale.double()
    t, groups = start.codes.double(), 3 if parts[0] == "group" else 1
    # One column of the design for each scale: the outputs that its codes alone make.
    parts_of = [t * (torch.arange(192) // (192 // groups) == g) for g in range(groups)]
    designs = torch.stack([x @ p.T for p in parts_of], -1).transpose(0, 1)
    targets = (x @ w.T).T[..., None]
    if parts[0] == "matrix":
        designs, targets = designs.reshape(1, -1, groups), targets.reshape(1, -1, 1)
    want = torch.linalg.lstsq(designs, targets).solution[..., 0].reshape(got.shape)
    torch.testing.assert_close(got, want, rtol=2**-20, atol=0)


def test_inputs_that_are_zero_and_a_zero_matrix_do_no_harm():
    w = weights(4, 16)
    nothing = quantize_on_data(w, torch.zeros(16, 16), "row")
    assert bool(nothing.dense().isfinite().all())
    dead = inputs(50, 16)
    dead[:, 3] = 0
    assert bool(quantize_on_data(w, gram_of(dead), "group", 4).dense().isfinite().all())
    assert not quantize_on_data(torch.zeros(4, 16), gram_of(inputs(50, 16)), "row").codes.any()
    assert quantize_on_data(torch.zeros(0, 16), torch.eye(16), "row").codes.shape == (0, 16)


def test_wrong_arguments_are_refused_by_name():
    w = weights(4, 16)
    with pytest.raises(ShapeError, match=r"gram must be \(K, K\) with K=16, got \(8, 8\)"):
        quantize_on_data(w, torch.eye(8))
    with pytest.raises(QuantizationError, match="gram has an element that is not finite"):
        quantize_on_data(w, torch.full((16, 16), float("nan")))
    with pytest.raises(ConfigurationError, match="granularity must be"):
        quantize_on_data(w, torch.eye(16), "column")


def test_gram_matrices_are_the_means_over_all_rows_and_batches():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    layers = {"0": model[0], "2": model[2]}
    batches = [torch.randn(3, 4, 6), torch.randn(2, 6)]
    model.train()
    grams = gram_matrices(model, layers, batches)
    assert model.training
    rows = torch.cat([b.reshape(-1, 6) for b in batches])
    inner = model[1](model[0](rows)).detach()
    for name, x in (("0", rows), ("2", inner)):
        torch.testing.assert_close(grams[name], x.T @ x / 14, rtol=14 * 2**-22, atol=1e-6)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_layers_that_read_one_tensor_have_one_matrix_and_others_their_own():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.a(x) + self.b(x) + self.c(x + 1)

    model = Fork()
    grams = gram_matrices(model, dict(model.named_children()), [torch.randn(5, 4)] * 2)
    assert same_bits(grams["a"], grams["b"])
    assert not same_bits(grams["a"], grams["c"])


def test_a_layer_that_is_given_nothing_is_named():
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4)})
    model.forward = model["used"].forward
    with pytest.raises(ConfigurationError, match=r"nothing to used \(2 of 2 layers\)"):
        gram_matrices(model, dict(model.named_children()), [torch.randn(1, 4)])
