"""What happens where the library is absent, or is not the one the launchers were written for."""

import json

import pytest

from bitnet_torch.cpu import _library
from bitnet_torch.errors import BackendUnavailableError, ConfigurationError


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Look for the library in an empty folder."""
    monkeypatch.setattr(_library, "_HERE", tmp_path)
    _library.library.cache_clear()
    yield tmp_path
    _library.library.cache_clear()


def test_an_absent_library_is_reported_with_the_reason_of_the_build(elsewhere):
    record = {"built": False, "reason": "c++ failed: no such file"}
    (elsewhere / "_build.json").write_text(json.dumps(record))
    with pytest.raises(BackendUnavailableError, match="no such file"):
        _library.library()


def test_an_uninstalled_tree_is_reported_as_such(elsewhere):
    with pytest.raises(BackendUnavailableError, match="not installed"):
        _library.library()


def test_a_file_that_is_no_library_is_not_passed_over(elsewhere):
    (elsewhere / _library._FILE).write_bytes(b"not a library")
    with pytest.raises(OSError, match=r".+"):
        _library.library()


def test_a_library_of_other_sources_is_not_passed_over(built, monkeypatch):
    monkeypatch.setattr(_library, "ABI", -1)
    _library.library.cache_clear()
    with pytest.raises(ConfigurationError, match="reinstall"):
        _library.library()
    _library.library.cache_clear()


def test_the_build_is_recorded_with_its_compiler_and_flags(built):
    record = _library.build_record()
    assert record["built"]
    assert record["compiler"]
    assert record["flags"]
