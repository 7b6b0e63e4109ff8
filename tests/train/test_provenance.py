import subprocess

import pytest
import torch

from bitnet_torch.train.provenance import git_commit, versions


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "bitnet_torch" / "train"
    folder.mkdir(parents=True)
    (folder / "code.py").write_text("1\n")
    author = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return folder


def test_a_checkout_has_its_commit(checkout):
    commit = git_commit(checkout)
    assert commit is not None
    assert len(commit) == 40


def test_changed_code_is_called_dirty(checkout):
    (checkout / "code.py").write_text("2\n")
    assert git_commit(checkout).endswith("-dirty")


def test_outside_of_a_checkout_there_is_none(tmp_path):
    assert git_commit(tmp_path) is None


def test_somebody_elses_repository_around_an_installed_package_says_nothing(checkout, tmp_path):
    site = tmp_path / "venv" / "bitnet_torch" / "train"
    site.mkdir(parents=True)
    (tmp_path / "bitnet_torch" / "train").rename(tmp_path / "other")
    assert git_commit(site) is None


def test_without_git_there_is_none(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert git_commit(checkout) is None


def test_versions_name_what_the_figures_depend_on():
    found = versions()
    assert found["torch"] == torch.__version__
    assert set(found) == {"python", "bitnet-torch", "torch", "numpy", "safetensors"}
