"""Files and folders that are the old one or the new one: on errors, and under kill -9.

The kill is exhaustive: a forked child writes while a trace counts the lines that
``atomic.py`` executes, and kills itself at the n-th, for every n there is.
"""

import os
import signal
import stat
import sys

import pytest

from bitnet_torch.io import atomic
from bitnet_torch.io.atomic import atomic_file, atomic_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def write_file(path, text):
    with atomic_file(path) as aside:
        aside.write_text(text)


def write_folder(path, text):
    with atomic_folder(path) as aside:
        (aside / "a").write_text(text)
        (aside / "b").mkdir()
        (aside / "b" / "c").write_text(text)


def read_folder(path):
    return {str(p.relative_to(path)): p.read_text() for p in path.rglob("*") if p.is_file()}


def content(path):
    return read_folder(path) if path.is_dir() else path.read_text() if path.exists() else None


def leftovers(folder):
    return [p.name for p in folder.iterdir() if p.name.endswith(".partial")]


def killed_at_line(n, action):
    """Run ``action`` in a child that kills itself at the n-th line; return whether it did."""
    child = os.fork()
    if not child:
        lines = 0

        def trace(frame, event, argument):
            nonlocal lines
            if frame.f_code.co_filename != atomic.__file__:
                return None
            if event == "line":
                lines += 1
                if lines == n:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        action()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("write", [write_file, write_folder])
@pytest.mark.parametrize("there_already", [True, False])
def test_a_kill_at_any_line_leaves_the_old_content_or_the_new(tmp_path, write, there_already):
    target = tmp_path / "target"
    write(target, "new")
    new = content(target)
    old = None
    seen = set()
    for n in range(1, 1000):
        target = tmp_path / f"{n}" / "target"
        target.parent.mkdir()
        if there_already:
            write(target, "old")
            old = content(target)
        killed = killed_at_line(n, lambda target=target: write(target, "new"))
        found = content(target)
        assert found in (old, new)
        seen.add(found == new)
        # Whatever was left behind does not hinder the next write.
        write(target, "new")
        assert content(target) == new
        if not killed:
            break
    assert seen == {False, True}
    assert n > 10


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_flush_that_fails_leaves_the_old_content_and_no_litter(tmp_path, write, monkeypatch):
    target = tmp_path / "target"
    write(target, "old")
    old = content(target)

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(target, "new")
    assert content(target) == old
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_inside_the_block_passes_and_leaves_nothing(tmp_path, writer, error):
    with pytest.raises(error), writer(tmp_path / "target"):
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path, writer):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "absent" / "target", tmp_path / "file" / "target"):
        with pytest.raises(OSError, match=r"target|absent|file"), writer(target):
            pytest.fail("the block ran")
    assert (tmp_path / "file").read_text() == "x"


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "target").write_text("x")
    with (
        pytest.raises(NotADirectoryError, match="target is a file"),
        atomic_folder(tmp_path / "target"),
    ):
        pytest.fail("the block ran")


def test_where_names_cannot_be_swapped_the_folder_is_still_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    write_folder(tmp_path / "target", "old")
    write_folder(tmp_path / "target", "new")
    assert read_folder(tmp_path / "target") == {"a": "new", "b/c": "new"}
    assert leftovers(tmp_path) == []


def test_new_files_and_folders_have_the_usual_mode(tmp_path):
    before = os.umask(0o022)
    try:
        write_file(tmp_path / "file", "x")
        write_folder(tmp_path / "folder", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


def test_a_link_keeps_pointing_and_its_target_is_replaced(tmp_path):
    for write, name in ((write_file, "file"), (write_folder, "folder")):
        write(tmp_path / name, "old")
        link = tmp_path / f"link to {name}"
        link.symlink_to(tmp_path / name)
        write(link, "new")
        assert link.is_symlink()
        assert content(tmp_path / name) == content(link)
        assert "new" in str(content(link))
