"""The losses of distillation: worked out by hand, by slow loops, and by finite differences."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from bitnet_torch.errors import BitNetError, ConfigurationError, ShapeError
from bitnet_torch.models import CausalLM, ModelConfig
from bitnet_torch.nn import convert
from bitnet_torch.train import Distillation, DistillationConfig, ScheduleConfig, distill
from bitnet_torch.train.distillation import logits_loss, relation_loss
from bitnet_torch.train.projections import Projections
from tests.bits import same_bits

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def decoder(seed=0, **changes):
    model = CausalLM(ModelConfig(**{**SIZES, **changes}), linear=nn.Linear, dtype=torch.float32)
    model.init_weights(seed)
    # The initial weights are small: a few times larger, a layer's output says something.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model


def pair(**changes):
    teacher = decoder()
    student = copy.deepcopy(teacher)
    convert(student)
    return student, teacher, DistillationConfig(**changes)


def windows(step=0):
    return torch.randint(0, 32, (3, 9), generator=torch.Generator().manual_seed(step))


def test_the_loss_on_logits_has_the_value_worked_out_by_hand():
    # At temperature 5 the teacher says 3/4, 1/4 and the student 1/2, 1/2.
    teacher = torch.tensor([[5 * math.log(3), 0.0]], dtype=torch.float64)
    value = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = logits_loss(torch.zeros(1, 2, dtype=torch.float64), teacher)
    # A dozen operations on numbers of about 1.
    assert abs(loss.item() - value) <= 16 * 2**-52


def test_the_loss_on_logits_is_a_mean_over_tokens_without_a_factor_for_the_temperature():
    student, teacher = (
        torch.randn(2, 3, 5, dtype=torch.float64),
        torch.randn(2, 3, 5, dtype=torch.float64),
    )
    value = 0.0
    for mine, its in zip(student.view(-1, 5), teacher.view(-1, 5), strict=True):
        p, q = (its / 2).softmax(0), (mine / 2).softmax(0)
        value += (p * (p / q).log()).sum().item() / 6
    assert abs(logits_loss(student, teacher, 2.0).item() - value) <= 64 * 2**-52


def test_relations_have_the_value_worked_out_by_hand():
    # Two tokens. The student's states are alike: every row of its relations is 1/2, 1/2. The
    # teacher's stand at right angles, whatever their lengths: its rows are e : 1 and 1 : e.
    student = torch.tensor([[[2.0, 0.0], [7.0, 0.0]]], dtype=torch.float64)
    teacher = torch.tensor([[[3.0, 0.0], [0.0, 0.5]]], dtype=torch.float64)
    p = math.e / (1 + math.e)
    value = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert abs(relation_loss([student], [teacher], 1).item() - value) <= 16 * 2**-52
    # Queries, keys and values add up; heads, tokens and sequences are averaged.
    thrice = relation_loss([student.repeat(4, 1, 1)] * 3, [teacher.repeat(4, 1, 1)] * 3, 1)
    assert abs(thrice.item() - 3 * value) <= 64 * 2**-52


@pytest.mark.parametrize("temperature", [0.5, 1.0, None])
def test_relations_equal_the_sum_over_heads_tokens_and_sequences(temperature):
    mine, its = (
        torch.randn(2, 5, 6, dtype=torch.float64),
        torch.randn(2, 5, 12, dtype=torch.float64),
    )
    value = 0.0
    for b, head, token in itertools.product(range(2), range(3), range(5)):
        rows = []
        for states in (mine[b].chunk(3, -1)[head], its[b].chunk(3, -1)[head]):
            if temperature is None:
                likeness = states @ states[token] / math.sqrt(states.shape[1])
            else:
                unit = states / states.norm(dim=1, keepdim=True)
                likeness = unit @ unit[token] / temperature
            rows.append(likeness.softmax(0))
        q, p = rows
        value += (p * (p / q).log()).sum().item() / (2 * 3 * 5)
    loss = relation_loss([mine], [its], 3, temperature).item()
    # Likenesses are at most 20 here; 30 sums of 5 terms, each off by a few units.
    assert abs(loss - value) <= 1024 * 2**-52


def test_both_losses_are_nothing_between_equals_and_positive_otherwise():
    a, b = torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    assert logits_loss(a, a).item() == 0
    assert relation_loss([a], [a], 2).item() == 0
    # Lengths do not count where rows are normalised.
    assert relation_loss([a], [a * 3], 2).item() <= 64 * 2**-52
    assert logits_loss(a, b).item() > 0
    assert relation_loss([a], [b], 2).item() > 0


@pytest.mark.parametrize("temperature", [0.7, None])
def test_the_gradients_of_both_losses_are_those_of_finite_differences(temperature):
    student = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: logits_loss(x, teacher, 3.0), student)
    assert torch.autograd.gradcheck(
        lambda x: relation_loss([x, x * 2], [teacher, teacher], 2, temperature), student
    )


def test_the_losses_refuse_what_cannot_be_compared():
    with pytest.raises(ShapeError, match=r"one shape, got \(1, 4\) and \(1, 5\)"):
        logits_loss(torch.zeros(1, 4), torch.zeros(1, 5))
    with pytest.raises(ShapeError, match=r"same tokens, got \(1, 4, 6\) and \(1, 5, 6\)"):
        relation_loss([torch.zeros(1, 4, 6)], [torch.zeros(1, 5, 6)], 1)
    with pytest.raises(ShapeError, match="width of 6 cannot be cut into heads=4"):
        relation_loss([torch.zeros(1, 4, 6)], [torch.zeros(1, 4, 6)], 4)


def test_the_loss_of_a_batch_is_the_weighted_sum_of_its_parts():
    student, teacher, config = pair(heads=2, logits_weight=3.0, relation_weight=7.0)
    losses = Distillation(student, teacher, config).losses(windows())
    inputs, targets = windows()[:, :-1], windows()[:, 1:]
    logits = student(inputs)
    assert same_bits(
        losses.cross_entropy, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    )
    assert same_bits(losses.logits, 3 * logits_loss(logits, teacher(inputs)))
    with Projections(student, -1).kept() as mine, Projections(teacher, -1).kept() as its:
        student(inputs), teacher(inputs)
    assert [states.shape for states in mine] == [(3, 8, 16), (3, 8, 8), (3, 8, 8)]
    assert same_bits(losses.relations, 7 * relation_loss(mine, its, 2))
    total = losses.cross_entropy + losses.logits + losses.relations
    assert abs(losses.total.item() - total.item()) <= 4 * 2**-24 * total.item()


def test_relations_are_those_of_the_layer_that_is_named():
    student, teacher, _ = pair()
    seen = [
        Distillation(student, teacher, DistillationConfig(student_layer=a, teacher_layer=b))
        .losses(windows())
        .relations.item()
        for a, b in ((0, 0), (1, 1), (-1, -1), (-2, -2), (0, 1))
    ]
    assert seen[1] == seen[2]
    assert seen[0] == seen[3]
    assert len(set(seen)) == 3


def test_a_relation_weight_of_0_leaves_relations_out_and_any_model_will_do():
    body = nn.Sequential(nn.Embedding(32, 8), nn.Linear(8, 32))
    losses = Distillation(body, copy.deepcopy(body), DistillationConfig(relation_weight=0)).losses(
        windows()
    )
    assert losses.relations is None
    assert list(losses.parts) == ["cross_entropy", "logits"]


def test_no_gradient_reaches_the_teacher_and_watching_changes_no_bit():
    student, teacher, config = pair(heads=2)
    before = student(windows()[:, :-1])
    tracked = []
    teacher.register_forward_hook(lambda _m, _i, logits: tracked.append(logits.requires_grad))
    losses = Distillation(student, teacher, config).losses(windows())
    losses.total.backward()
    assert tracked == [False]
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    assert same_bits(student(windows()[:, :-1]), before)
    assert not any(m._forward_hooks for m in student.modules())


def test_the_norm_of_each_part_is_that_of_its_own_backward_pass():
    student, teacher, config = pair(heads=2)
    distillation = Distillation(student, teacher, config)
    losses = distillation.losses(windows())
    norms = distillation.gradient_norms(losses)
    assert list(norms) == ["cross_entropy", "logits", "relations"]
    for name, norm in norms.items():
        student.zero_grad()
        distillation.losses(windows()).parts[name].backward()
        parts = [p.grad.double().square().sum() for p in student.parameters() if p.grad is not None]
        expected = torch.stack(parts).sum().sqrt().item()
        # float64 sums of float32 squares; numel is below 2^12.
        assert abs(norm - expected) <= 2**12 * 2**-52 * expected


def test_a_teacher_with_ternary_layers_is_refused():
    student, _, config = pair()
    with pytest.raises(ConfigurationError, match="teacher must be in full precision; model"):
        Distillation(student, student, config)


def test_a_layer_that_is_not_there_is_refused():
    student, teacher, _ = pair()
    for layer in (2, -3):
        with pytest.raises(ConfigurationError, match=f"no attention in layer {layer}: 2 layers"):
            Distillation(student, teacher, DistillationConfig(student_layer=layer))


@pytest.mark.parametrize("wrong", [{"heads": 0}, {"temperature": 0.0}, {"logits_weight": -1.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        DistillationConfig(**wrong)


SCHEDULE = ScheduleConfig(steps=40, qat_start=0, warmup=4)


def test_a_ternary_student_comes_nearer_to_its_teacher():
    student, teacher, config = pair(heads=2, logits_weight=10.0, relation_weight=10.0)
    rows = list(distill(Distillation(student, teacher, config), windows, SCHEDULE, norms_every=20))
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert [r["step"] for r in rows if "gradient_norms" in r] == [1, 21]
    for part in ("logits", "relations"):
        first, last = (sum(r[part] for r in rows[s]) for s in (slice(0, 5), slice(-5, None)))
        assert last < 0.8 * first


def test_what_requires_no_gradient_stays_as_it_is():
    student, teacher, config = pair(relation_weight=0.0)
    student.model.embed_tokens.weight.requires_grad_(False)
    before = student.model.embed_tokens.weight.clone()
    for _ in distill(Distillation(student, teacher, config), windows, SCHEDULE):
        pass
    assert same_bits(student.model.embed_tokens.weight, before)


def test_a_loss_that_is_not_finite_ends_the_loop_before_the_step_is_made():
    student, teacher, config = pair(relation_weight=0.0)
    before = student.model.layers[0].mlp.up_proj.weight.clone()
    with torch.no_grad():
        teacher.lm_head.weight[0, 0] = math.inf
    with pytest.raises(BitNetError, match="step 1: the loss is nan") as caught:
        list(distill(Distillation(student, teacher, config), windows, SCHEDULE))
    assert math.isfinite(caught.value.context["cross_entropy"])
    assert same_bits(student.model.layers[0].mlp.up_proj.weight, before)
