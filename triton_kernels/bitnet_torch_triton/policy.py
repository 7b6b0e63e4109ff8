"""How a launch finds its configuration: by architecture, op, tokens and shape, in a table.

The table is data (:mod:`bitnet_torch_triton.rules`), so the same call does the same thing on
every run, and nothing is tried out during a user's first token. What was tuned on a machine
(:mod:`bitnet_torch_triton.tune`) stands before what was shipped.
"""

from __future__ import annotations

import functools
import re

import torch

from bitnet_torch.errors import BackendUnavailableError, ConfigurationError
from bitnet_torch_triton._interpreter import interpreted
from bitnet_torch_triton.rules import RULES, Rule

INTERPRETER = "interpreter"
# The first with cp.async and with integer matrix instructions that take 16 bytes a lane.
OLDEST_CUDA = 80
# Programs that own a few dozen rows each fill no GPU with so few of them.
FEW_ROWS = 8192

_preferred: tuple[Rule, ...] = ()


def check_arch(arch: str) -> str:
    """Return ``arch``, a name like ``sm_90`` or ``gfx942``.

    Raises:
        BackendUnavailableError: It is an NVIDIA architecture before sm_80.
        ConfigurationError: It is not the name of an architecture.
    """
    if arch == INTERPRETER or re.fullmatch(r"gfx[0-9a-f]{3,5}", arch):
        return arch
    found = re.fullmatch(r"sm_(\d+)", arch)
    if not found:
        raise ConfigurationError(f"arch must be like sm_90 or gfx942, got {arch!r}", arch=arch)
    if int(found[1]) < OLDEST_CUDA:
        raise BackendUnavailableError(
            f"{arch} is older than sm_{OLDEST_CUDA}: these kernels need the integer matrix "
            "instructions and asynchronous copies of Ampere and later",
            arch=arch,
        )
    return arch


@functools.lru_cache(maxsize=64)
def arch_of(device: torch.device) -> str:
    """Return the architecture of a device, or ``interpreter``.

    Raises:
        BackendUnavailableError: The device is older than sm_80.
    """
    if interpreted():
        return INTERPRETER
    if torch.version.hip:
        name: str = torch.cuda.get_device_properties(device).gcnArchName
        return check_arch(name.partition(":")[0])
    major, minor = torch.cuda.get_device_capability(device)
    return check_arch(f"sm_{major}{minor}")


@functools.lru_cache(maxsize=64)
def processors(device: torch.device) -> int:
    """Return the number of multiprocessors of a device; 1 in the interpreter."""
    if device.type == "cpu":
        return 1
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def shape_class(n: int, k: int) -> str:
    """Return the class of a product with N outputs (of all matrices of a launch) and K inputs."""
    return "few rows" if n <= FEW_ROWS else "many rows"


def rule_for(
    op: str, arch: str, m: int, n: int = 0, k: int = 0, device: torch.device | None = None
) -> Rule:
    """Return the first row that fits, of the tuned ones and then of the shipped.

    Args:
        op: Whose launch it is.
        arch: Of the device.
        m: Tokens.
        n: Outputs of all matrices of the launch.
        k: Inputs.
        device: Whose tuned rows count; None for the shipped table alone.

    Raises:
        ConfigurationError: There is none.
    """
    return _find(op, arch, m, n, k, device)


def prefer(rules: tuple[Rule, ...]) -> None:
    """Make ``rules`` the ones that stand before all others, instead of any before."""
    global _preferred
    _preferred = tuple(rules)
    forget_tuned()


def forget_tuned() -> None:
    """Read the tuned rows of a device anew when they are next asked for."""
    tuned_rows.cache_clear()
    _find.cache_clear()


@functools.lru_cache(maxsize=64)
def tuned_rows(device: torch.device) -> tuple[Rule, ...]:
    """Return the rows that were tuned for a device on this machine; reads their file once."""
    if interpreted():
        return ()
    # Here and not at the top: what may be stored is decided by who knows the rows.
    from bitnet_torch_triton.tune.store import environment_of, usable_rules

    return usable_rules(environment_of(device))


@functools.lru_cache(maxsize=4096)
def _find(op: str, arch: str, m: int, n: int, k: int, device: torch.device | None) -> Rule:
    shapes = (None, shape_class(n, k), f"{n}x{k}")
    tuned = () if device is None else tuned_rows(device)
    for rule in (*_preferred, *tuned, *RULES):
        if (
            rule.op == op
            and arch.startswith(rule.arch)
            and rule.least_tokens <= m
            and (rule.most_tokens is None or m <= rule.most_tokens)
            and rule.shape in shapes
        ):
            return rule
    raise ConfigurationError(f"no launch rule for {op} on {arch} with {m} tokens, {n}x{k}")
