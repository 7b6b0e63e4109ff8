"""Importing the package is light and public names are where they were promised."""

import subprocess
import sys

import pytest

import bitnet_torch as bt


def run(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_imports_no_torch():
    assert run("import bitnet_torch, sys; print('torch' in sys.modules)") == "False"


def test_importing_everything_starts_no_thread_sets_no_variable_and_adds_no_handler():
    code = (
        "import os, threading, logging; before = dict(os.environ)\n"
        "import torch; handlers = list(logging.root.handlers); threads = threading.active_count()\n"
        "import bitnet_torch as bt\n"
        "bt.ops, bt.BitLinear, bt.load, bt.save_pretrained\n"
        "assert dict(os.environ) == before\n"
        "assert logging.root.handlers == handlers\n"
        "assert not logging.getLogger('bitnet_torch').handlers\n"
        "assert threading.active_count() == threads\n"
        "assert not torch.cuda.is_initialized()\n"
        "print('ok')"
    )
    assert run(code) == "ok"


@pytest.mark.parametrize("module", ["matplotlib", "tqdm", "transformers", "tokenizers", "triton"])
def test_optional_libraries_are_not_imported(module):
    code = (
        # With a GPU in sight Triton is no longer optional: its kernels are loaded.
        "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''\n"
        "import sys, torch; before = set(sys.modules)  # torch itself imports some of them\n"
        "import bitnet_torch as bt; bt.load, bt.train\n"
        f"print({module!r} in set(sys.modules) - before)"
    )
    assert run(code) == "False"


@pytest.mark.parametrize("name", bt.__all__)
def test_every_public_name_resolves(name):
    assert getattr(bt, name) is not None
    assert name in dir(bt)


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="has no attribute 'BitConv'"):
        bt.BitConv  # noqa: B018
