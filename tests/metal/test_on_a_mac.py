"""On an Apple GPU: compile every kernel and print a report that its owner can send us."""

import platform
from pathlib import Path

import pytest
import torch

import bitnet_torch_mps
from bitnet_torch_mps import _launch

FILES = sorted(path.stem for path in Path(bitnet_torch_mps.__file__).parent.glob("*.metal"))


@pytest.mark.apple
@pytest.mark.mps
def test_every_kernel_compiles_and_reports_its_limits(capsys):
    lines = [f"macOS {platform.mac_ver()[0]}, torch {torch.__version__}, {platform.processor()}"]
    for file in FILES:
        library = _launch.library(file)
        for name in dir(library):
            kernel = getattr(library, name)
            threads, width = kernel.max_threads_per_threadgroup, kernel.thread_execution_width
            shared = kernel.static_thread_group_memory_length
            lines.append(f"{name}: {threads} threads by {width}, {shared} bytes")
            assert threads >= _launch.GROUP
            assert width == 32
    with capsys.disabled():
        print("\n" + "\n".join(lines))


@pytest.mark.metal_host
def test_every_file_compiles_in_the_shim():
    assert {"number", "ternary_linear", "rms_norm"} <= set(FILES)
    for file in FILES:
        assert isinstance(dir(_launch.library(file)), list)
