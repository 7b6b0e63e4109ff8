"""The launch table: what is found for a device, and what no table serves."""

import pytest
import torch

from bitnet_torch.errors import BackendUnavailableError, ConfigurationError
from bitnet_torch_triton import policy
from bitnet_torch_triton._launch import KernelConfig
from bitnet_torch_triton.rules import RULES, Rule

OPS = sorted({rule.op for rule in RULES})
ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100")


@pytest.fixture(autouse=True)
def _shipped_table_only():
    yield
    policy.prefer(())


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_rule_on_every_architecture_for_any_tokens(op):
    for arch in (*ARCHS, policy.INTERPRETER):
        for m in (1, 2, 8, 9, 16, 17, 100_000):
            for n in (1, 2560, 128_256):
                assert policy.rule_for(op, arch, m, n, 2560).op == op


def test_the_first_rule_that_fits_serves_and_a_tuned_one_stands_before_all():
    one, many = (
        Rule("ternary_linear", KernelConfig(block_k=k), arch="sm_9", most_tokens=most, shape=shape)
        for k, most, shape in ((1, 1, "7x5"), (2, None, "few rows"))
    )
    shipped = policy.rule_for("ternary_linear", "sm_90", 1, 7, 5)
    policy.prefer((one, many))
    assert policy.rule_for("ternary_linear", "sm_90", 1, 7, 5) is one
    assert policy.rule_for("ternary_linear", "sm_90", 2, 7, 5) is many
    assert policy.rule_for("ternary_linear", "sm_90", 1, 7, 6) is many
    assert policy.rule_for("ternary_linear", "sm_90", 1, policy.FEW_ROWS + 1, 5) in RULES
    assert policy.rule_for("ternary_linear", "sm_80", 1, 7, 5) in RULES
    policy.prefer(())
    assert policy.rule_for("ternary_linear", "sm_90", 1, 7, 5) is shipped


def test_an_op_without_a_rule_is_an_error():
    with pytest.raises(ConfigurationError, match="no launch rule for cast on sm_80 with 3 tokens"):
        policy.rule_for("cast", "sm_80", 3)


def test_a_device_older_than_sm_80_is_refused_by_name(monkeypatch):
    policy.arch_of.cache_clear()
    monkeypatch.setattr(policy, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(BackendUnavailableError, match="sm_75 is older than sm_80"):
        policy.arch_of(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    assert policy.arch_of(torch.device("cuda", 0)) == "sm_120"
    policy.arch_of.cache_clear()


def test_a_name_that_is_no_architecture_is_refused():
    with pytest.raises(ConfigurationError, match="must be like sm_90 or gfx942, got 'A100'"):
        policy.check_arch("A100")


def test_an_amd_device_is_known_by_the_name_its_compiler_uses(monkeypatch):
    policy.arch_of.cache_clear()
    monkeypatch.setattr(policy, "interpreted", lambda: False)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    properties = type("Properties", (), {"gcnArchName": "gfx942:sramecc+:xnack-"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert policy.arch_of(torch.device("cuda", 0)) == "gfx942"
    policy.arch_of.cache_clear()
