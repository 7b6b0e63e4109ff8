"""Fixtures of the kernel tests."""

import fcntl
import os

import pytest

from tests.triton.aot import KERNELS, report
from tests.triton.poison import amid_poison

EMULATED = (*KERNELS, "_int8_few_kernel")


@pytest.fixture
def subnormals():
    """Float32 subnormals are not flushed: there is no switch to set here."""


@pytest.fixture(scope="module")
def poison():
    """Poison around every tensor that a kernel is given."""
    from bitnet_torch_triton import _launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_launch, "start", amid_poison(_launch.start))
        yield


@pytest.fixture(scope="session")
def aot_cache(tmp_path_factory):
    """A folder of compiled kernels that all processes of this run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "triton-cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def decode_code(aot_cache, tmp_path_factory):
    """(entry of the report, PTX) of every decode kernel, for sm_80 and bfloat16."""
    return decode_kernels("bf16", tmp_path_factory.mktemp("ptx"), aot_cache)


def decode_kernels(f, folder, cache):
    """Compile the decode kernels for sm_80, which another process may do just now."""
    named = [argument for name in EMULATED for argument in ("--kernel", name)]
    arguments = ("--arch", "sm_80", "--float", f, *named, "--save", str(folder))
    with (cache / f"lock-{f}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entries = report(*arguments, cache=cache)
    assert {e["kernel"] for e in entries} == set(EMULATED)
    return [(e, (folder / f"sm_80-{i}.ptx").read_text()) for i, e in enumerate(entries)]
