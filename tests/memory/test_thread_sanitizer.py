"""ThreadSanitizer finds no race in the native tracker, and finds the one that is planted.

Python and PyTorch are not built for it, so the tracker is linked into a program of its own,
which calls every function that needs no Python from ten threads.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bitnet_torch.memory import native_build

DRIVER = Path(__file__).with_name("tsan_driver.cpp")
_RACE = 66  # ThreadSanitizer's exit status
_FLAGS = ("-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread")
_GUARDED = """    std::lock_guard<std::mutex> guard(b.mutex);
    b.leave(as_number(address), 0);"""


def run(folder, source):
    """Build and run the driver with a tracker; return the finished process."""
    program = folder / "driver"
    command = [
        native_build._compiler(), *_FLAGS, *native_build._search_paths(),
        f"-I{native_build.SOURCE.parent}", str(DRIVER), str(source), "-o", str(program),
        *native_build._libraries(),
    ]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if "libtsan" in built.stderr:
        pytest.skip("the compiler has no ThreadSanitizer")
    assert built.returncode == 0, built.stderr[-3000:]
    # Its shadow memory needs addresses that random placement may have taken.
    fixed = [shutil.which("setarch"), "-R"] if shutil.which("setarch") else []
    # What a race has broken may loop without end: the first report ends the program.
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(
        [*fixed, str(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.parametrize("planted", [False, True])
def test_threads_race_for_nothing_but_what_is_planted(tmp_path, planted):
    source = native_build.SOURCE.read_text()
    assert source.count(_GUARDED) == 1
    if planted:
        source = source.replace(_GUARDED, "    b.leave(as_number(address), 0);")
    path = tmp_path / native_build.SOURCE.name
    path.write_text(source)
    done = run(tmp_path, path)
    if planted:
        assert done.returncode == _RACE, (done.returncode, done.stdout, done.stderr[-3000:])
        assert "data race" in done.stderr
    else:
        assert done.returncode == 0, done.stdout + done.stderr[-5000:]
        assert done.stdout.count("blocks") == 2
