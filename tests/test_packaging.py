"""What the wheel holds and what an installation of it can do, tried on a real one."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel once, from a copy so that the checkout stays clean."""
    import shutil

    source = tmp_path_factory.mktemp("source") / "bitnet-torch"
    kept = shutil.ignore_patterns(
        ".git", "build", "*.egg-info", ".ci", "data", "runs", "*.so", "_build.json", ".venv"
    )
    shutil.copytree(ROOT, source, ignore=kept)
    out = tmp_path_factory.mktemp("wheel")
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
    subprocess.run([sys.executable, *command], check=True, timeout=240)
    (found,) = out.glob("bitnet_torch-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel, not editable, into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    command = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, *command], check=True, timeout=240)
    return target


def run_installed(target, code, cwd):
    """Run ``code`` with the installation in front of everything, away from the checkout."""
    preamble = f"import sys; sys.path.insert(0, {str(target)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", preamble + code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.timeout(300)
def test_every_installed_top_level_name_begins_with_bitnet_torch(wheel):
    names = {n.split("/")[0] for n in zipfile.ZipFile(wheel).namelist()}
    packages = {n for n in names if not n.endswith(".dist-info")}
    assert packages
    assert all(n.startswith("bitnet_torch") for n in packages)


@pytest.mark.timeout(300)
def test_the_wheel_holds_the_types_marker_the_model_the_sources_and_the_build_record(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "bitnet_torch/py.typed" in names
    assert "bitnet_torch/assets/shakespeare/model.safetensors" in names
    assert "bitnet_torch/assets/shakespeare/config.json" in names
    assert "bitnet_torch/cpu/_build.json" in names
    assert "bitnet_torch/cpu/ternary_linear.cpp" in names
    assert "bitnet_torch/cpu/isa.hpp" in names
    assert any(n.startswith("bitnet_torch/cpu/_kernels") for n in names)
    assert not any(n.startswith(("tests", "examples", "triton_kernels", "mps")) for n in names)


@pytest.mark.timeout(300)
def test_the_installed_package_runs_its_kernels_and_its_model(installed, tmp_path):
    code = (
        "import bitnet_torch as bt\n"
        "from bitnet_torch.assets import bundled_model\n"
        "print(bt.__file__)\n"
        "print(bt.ops.serving_backend('cpu'))\n"
        "print(len(bt.load(bundled_model()).generate('To be', max_new_tokens=4)))\n"
    )
    result = run_installed(installed, code, tmp_path)
    assert result.returncode == 0, result.stderr
    file, backend, length = result.stdout.split()
    assert Path(file).is_relative_to(installed)
    assert backend == "cpu"
    assert int(length) >= 1


@pytest.mark.timeout(300)
def test_a_package_named_triton_kernels_is_not_shadowed_from_the_checkout(tmp_path):
    (tmp_path / "triton_kernels").mkdir()
    (tmp_path / "triton_kernels" / "__init__.py").write_text("ORIGIN = 'theirs'\n")
    code = "import triton_kernels; print(triton_kernels.ORIGIN)"
    result = run_installed(tmp_path, f"sys.path.insert(0, {str(ROOT)!r})\n" + code, ROOT)
    assert result.stdout.strip() == "theirs", result.stderr


@pytest.mark.timeout(300)
def test_a_wheel_without_a_compiler_still_works_on_the_reference_and_says_why(
    tmp_path, monkeypatch
):
    import shutil

    source = tmp_path / "bitnet-torch"
    kept = shutil.ignore_patterns(".git", "build", "*.egg-info", "data", "runs", "*.so", "*.json")
    shutil.copytree(ROOT, source, ignore=kept)
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, "/nonexistent/compiler")
    command = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site")]
    subprocess.run([sys.executable, *command, str(source)], check=True, timeout=240)
    code = (
        "import torch, bitnet_torch as bt\n"
        "layer = bt.BitLinear(8, 4); x = torch.randn(2, 8)\n"
        "print(torch.equal(layer(x), layer.packed()(x)), bt.ops.serving_backend('cpu'))\n"
        "print({b.name: b.reason for b in bt.ops.load_backends()}['cpu'])\n"
    )
    result = run_installed(tmp_path / "site", code, tmp_path)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.strip().splitlines()
    assert first == "True reference"
    assert second.startswith("the CPU kernels are not built: ")
    assert "/nonexistent/compiler" in second
