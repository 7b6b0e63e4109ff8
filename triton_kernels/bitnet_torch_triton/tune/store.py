"""The file of tuned rules: where it lies, when it is believed, how it is written.

One JSON file for each kind of GPU, in a folder that only its user can enter
(``~/.cache/bitnet_torch/triton``, or below ``XDG_CACHE_HOME``)::

    {"version": 1,
     "environment": {"gpu": "NVIDIA A100-SXM4-40GB", "arch": "sm_80", "driver": "580.65.06",
                     "torch": "2.13.0", "triton": "3.9.0", "kernels": "<sha256 of the sources>"},
     "rules": [{"n": 2560, "k": 2560, "least_tokens": 1, "most_tokens": 1, "kernel": "gemv",
                "config": {"block_n": 8, ...}, "microseconds": 3.6, "shipped_microseconds": 3.9}]}

A file is believed as a whole or not at all: made by this user for exactly this environment, every
key and number as it must be, and every configuration one that tuning itself would try here. One
that is refused is named with the reason, once, and the shipped table serves.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import bitnet_torch_triton
from bitnet_torch.errors import ConfigurationError
from bitnet_torch.io.atomic import atomic_file
from bitnet_torch_triton._launch import KernelConfig
from bitnet_torch_triton.policy import arch_of
from bitnet_torch_triton.rules import Rule
from bitnet_torch_triton.tune.candidates import BUCKETS, Problem, candidates

logger = logging.getLogger(__name__)

VERSION = 1
_MOST_BYTES = 1 << 20
_MOST_OUTPUTS, _MOST_INPUTS = 1 << 31, 131072
_NUMBERS = ("microseconds", "shipped_microseconds")
_OTHERS_MAY_WRITE = 0o022


@dataclass(frozen=True)
class Environment:
    """What a configuration was tuned on. It is of no use on anything else.

    Attributes:
        gpu: Name of the device.
        arch: Its architecture.
        driver: Version of the CUDA driver, or of HIP.
        torch: Version.
        triton: Version.
        kernels: SHA-256 of the sources of the kernels and their launchers.
    """

    gpu: str
    arch: str
    driver: str
    torch: str
    triton: str
    kernels: str

    @property
    def file(self) -> Path:
        """Where its rules are kept."""
        return folder() / (re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-") + ".json")


@dataclass(frozen=True)
class Tuned:
    """A configuration that was found to be faster than the shipped one.

    Attributes:
        problem: For what.
        kernel: Which kernel.
        config: How it is launched.
        microseconds: Of a call.
        shipped_microseconds: Of a call of the shipped row.
    """

    problem: Problem
    kernel: str
    config: KernelConfig
    microseconds: float
    shipped_microseconds: float


def folder() -> Path:
    """Return the folder of all such files."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "bitnet_torch" / "triton"


def environment_of(device: torch.device) -> Environment:
    """Return what is on this machine; the device must be a CUDA or HIP one."""
    return Environment(
        gpu=torch.cuda.get_device_name(device),
        arch=arch_of(device),
        driver=driver_version(),
        torch=torch.__version__,
        triton=version("triton"),
        kernels=kernels_hash(),
    )


def driver_version(listed: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Return the version of the GPU's driver.

    NVIDIA's as its kernel module says it, in ``listed``; where that cannot be seen (WSL), the
    version of CUDA that its library serves. AMD's by the version of HIP.
    """
    if torch.version.hip:
        return f"HIP {torch.version.hip}"
    if listed.exists():
        text = listed.read_text(errors="replace")
        if found := re.search(r"Kernel Module\D*(\d[\d.]*)", text.replace("x86_64", "")):
            return found[1]
    served = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(served))
    return f"CUDA {served.value}"


def kernels_hash() -> str:
    """Return the SHA-256 of the sources of the kernels and their launchers."""
    found = hashlib.sha256()
    for path in sorted(Path(bitnet_torch_triton.__path__[0]).glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def usable_rules(environment: Environment) -> tuple[Rule, ...]:
    """Return the stored rules for an environment, none (and a warning) if they are refused."""
    path = environment.file
    try:
        stored = read(path, environment)
    except FileNotFoundError:
        return ()
    except (ConfigurationError, OSError) as error:
        logger.warning("the tuned launch table %s is not used: %s", path, error)
        return ()
    return tuple(t.problem.rule(t.kernel, t.config, environment.arch) for t in stored)


def read(path: Path, environment: Environment) -> list[Tuned]:
    """Read a file of tuned rules.

    Raises:
        ConfigurationError: It is not one, or is not to be believed here.
        OSError: It cannot be read.
    """
    for place in (path.parent, path):
        _check_owner(place)
    with path.open("rb") as file:
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise ConfigurationError(f"it is larger than {_MOST_BYTES} bytes")
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"it is not JSON: {error}") from error
    whole = _object(values, "the file", {"version", "environment", "rules"})
    if whole["version"] != VERSION or type(whole["version"]) is not int:
        raise ConfigurationError(f"version must be {VERSION}, got {whole['version']!r}")
    _check_environment(whole["environment"], environment)
    if not isinstance(whole["rules"], list):
        raise ConfigurationError(f"rules must be a list, got {whole['rules']!r:.80}")
    found = [_tuned(v, f"rules[{i}]", environment) for i, v in enumerate(whole["rules"])]
    if len({tuned.problem for tuned in found}) < len(found):
        raise ConfigurationError("two rules are for the same problem")
    return found


def keep(tuned: Sequence[Tuned], environment: Environment) -> Path:
    """Add rules to the file of an environment; rules of the same problems are replaced.

    Another process that does so at the same time waits for its turn. A file that is not to be
    believed is replaced as a whole.

    Raises:
        OSError: It cannot be written; the file is as it was.
    """
    path = environment.file
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = {t.problem: t for t in (*_held(path, environment), *tuned)}
        rules = [_values(t) for t in held.values()]
        values = {"version": VERSION, "environment": asdict(environment), "rules": rules}
        with atomic_file(path, private=True) as aside:
            aside.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    finally:
        os.close(lock)
    return path


def _held(path: Path, environment: Environment) -> list[Tuned]:
    try:
        return read(path, environment)
    except FileNotFoundError:
        return []
    except ConfigurationError as error:
        logger.warning("the tuned launch table %s is replaced: %s", path, error)
        return []


def _values(tuned: Tuned) -> dict[str, Any]:
    values = {**asdict(tuned), **asdict(tuned.problem)}
    del values["problem"]
    return {_JSON_NAMES.get(name, name): value for name, value in values.items()}


_JSON_NAMES = {"least": "least_tokens", "most": "most_tokens"}
_KEYS = {"n", "k", "least_tokens", "most_tokens", "kernel", "config", *_NUMBERS}


def _tuned(values: Any, where: str, environment: Environment) -> Tuned:
    values = _object(values, where, _KEYS)
    n = _integer(values["n"], f"{where}.n", _MOST_OUTPUTS)
    k = _integer(values["k"], f"{where}.k", _MOST_INPUTS)
    bucket = (values["least_tokens"], values["most_tokens"])
    # 1.0 and True are equal to 1.
    if bucket not in BUCKETS or not {type(v) for v in bucket} <= {int, type(None)}:
        raise ConfigurationError(f"{where}: no launch is for {bucket[0]!r} to {bucket[1]!r} tokens")
    names = {field.name for field in fields(KernelConfig)}
    config = _object(values["config"], f"{where}.config", names)
    numbers = {name: _integer(config[name], f"{where}.config.{name}", 65536) for name in config}
    problem = Problem(n, k, *bucket)
    kernel, taken = values["kernel"], KernelConfig(**numbers)
    if not isinstance(kernel, str):
        raise ConfigurationError(f"{where}.kernel must be a name, got {kernel!r:.80}")
    if problem.rule(kernel, taken, environment.arch) not in candidates(problem, environment.arch):
        raise ConfigurationError(f"{where} is no configuration that tuning would try: {taken}")
    times = (_time(values[name], f"{where}.{name}") for name in _NUMBERS)
    return Tuned(problem, kernel, taken, *times)


def _check_environment(values: Any, here: Environment) -> None:
    names = [field.name for field in fields(Environment)]
    found = _object(values, "environment", set(names))
    for name in names:
        if found[name] != getattr(here, name):
            raise ConfigurationError(
                f"it was tuned with {name} {found[name]!r:.80}, here is {getattr(here, name)!r}; "
                "run `bitnet bench tune` again"
            )


def _check_owner(path: Path) -> None:
    status = path.stat()
    if status.st_uid != os.getuid():
        raise ConfigurationError(f"{path} belongs to user {status.st_uid}, this is {os.getuid()}")
    if status.st_mode & _OTHERS_MAY_WRITE:
        raise ConfigurationError(f"others may write to {path} (mode {status.st_mode & 0o777:o})")


def _object(values: Any, where: str, names: set[str]) -> dict[str, Any]:
    if not isinstance(values, dict) or set(values) != names:
        keys = sorted(values) if isinstance(values, dict) else values
        raise ConfigurationError(f"{where} must have the keys {sorted(names)}, got {keys!r:.200}")
    return values


def _integer(value: Any, where: str, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ConfigurationError(f"{where} must be an integer in [1, {most}], got {value!r:.80}")
    return value


def _time(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e9:
        raise ConfigurationError(f"{where} must be microseconds above 0, got {value!r:.80}")
    return float(value)
