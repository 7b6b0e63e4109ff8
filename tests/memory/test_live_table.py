"""The native tracker's table of live blocks, in a program of its own beside the standard map."""

import subprocess
from pathlib import Path

from bitnet_torch.memory import native_build
from tests.memory.conftest import needs_compiler

DRIVER = Path(__file__).with_name("live_table_driver.cpp")


@needs_compiler
def test_the_table_equals_a_map_and_costs_less_than_151_bytes_a_block(tmp_path):
    program = tmp_path / "driver"
    command = [
        native_build._compiler(), "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror",
        f"-I{native_build.SOURCE.parent}", str(DRIVER), "-o", str(program),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=120)
    said = subprocess.run([program], capture_output=True, text=True, check=True, timeout=60).stdout
    verdict, _, cost = said.partition(", at most ")
    assert verdict == "equal"
    assert 48 < float(cost.split()[0]) < 151
