"""README is run, not read: its Python blocks are executed and its commands are those of CI."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SETUP = ["pip install . && bitnet demo", "pip install -e '.[test]' && pytest"]


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})  # the asserts are inside
    assert list(tmp_path.iterdir()) == []


def test_there_are_python_blocks_and_exactly_two_set_up_commands():
    assert len(PYTHON) == 2
    first_blocks = re.findall(r"```sh\n(.*?)\n```", TEXT, re.DOTALL)[:2]
    assert first_blocks == SETUP


def test_continuous_integration_runs_the_two_commands_of_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in script if line in SETUP] == SETUP


PAGES = ["README.md", "CONTRIBUTING.md", "examples/README.md"]
PAGES += sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [t for t in re.findall(r"\]\(([^)#]+)", text) if "://" not in t]
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []


def test_every_folder_of_the_map_exists():
    rows = re.findall(r"^\| `([^|]+)` \|", TEXT, re.MULTILINE)
    names = [n.strip("` ") for row in rows for n in row.split(",")]
    assert len(names) > 8
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "bitnet_torch" / name).exists(), name
