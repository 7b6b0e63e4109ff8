"""An absent optional library is named with the command that installs it."""

import json
import sys

import pytest

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.errors import MissingDependencyError


def test_an_installed_library_is_returned():
    assert require("json", extra="train") is json


def test_a_submodule_is_returned_itself():
    assert require("json.decoder", extra="train") is json.decoder


def test_an_absent_library_names_itself_and_the_extra():
    with pytest.raises(MissingDependencyError, match="'absent_library'") as caught:
        require("absent_library.part", extra="hf")
    assert "pip install 'bitnet-torch[hf]'" in str(caught.value)
    assert caught.value.context == {"module": "absent_library.part", "extra": "hf"}
    assert isinstance(caught.value, ImportError)


def test_a_broken_library_raises_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("import absent_part\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="absent_part"):
        require("broken_library", extra="hf")
    assert "broken_library" not in sys.modules
