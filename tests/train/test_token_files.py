"""Files of tokens are one sequence, mapped and checked."""

import numpy as np
import pytest
import torch

import bitnet_torch as bt
from bitnet_torch.errors import ConfigurationError
from bitnet_torch.train import TrainConfig, train
from bitnet_torch.train.metrics import read_metrics
from bitnet_torch.train.token_files import MappedTokens
from tests.train.plays import EXCERPT, tiny_values


def files(folder):
    """Write three files of different kinds and return them with their content."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 500, n) for n in (50, 1, 33)]
    parts[0].astype("<u2").tofile(folder / "a.bin")
    np.save(folder / "b.npy", parts[1].astype(np.uint32))
    np.save(folder / "c.npy", parts[2].astype(np.int64))
    paths = [folder / n for n in ("a.bin", "b.npy", "c.npy")]
    return paths, torch.from_numpy(np.concatenate(parts))


def test_every_window_is_that_of_the_joined_files(tmp_path):
    paths, whole = files(tmp_path)
    tokens = MappedTokens(paths, "uint16", 500)
    assert len(tokens) == len(whole) == 84
    for start in range(0, 84):
        for stop in (start, start + 1, start + 7, 84, 200):
            got = tokens[start:stop]
            assert got.dtype == torch.int64
            assert torch.equal(got, whole[start:stop])
    assert torch.equal(tokens[:], whole)


def test_files_are_mapped_and_not_read(tmp_path):
    paths, _ = files(tmp_path)
    tokens = MappedTokens(paths, "uint16")
    assert all(isinstance(array, np.memmap) for array in tokens._arrays)


def test_an_empty_raw_file_counts_for_nothing(tmp_path):
    paths, whole = files(tmp_path)
    (tmp_path / "empty.bin").write_bytes(b"")
    assert torch.equal(MappedTokens([tmp_path / "empty.bin", *paths], "uint16")[:], whole)


def test_the_digest_is_that_of_the_content(tmp_path):
    paths, _ = files(tmp_path)
    digest = MappedTokens(paths, "uint16").digest()
    assert MappedTokens(paths, "uint16").digest() == digest
    changed = np.load(paths[2])
    changed[-1] += 1
    np.save(paths[2], changed)
    assert MappedTokens(paths, "uint16").digest() != digest


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("odd.bin", b"123", "3 bytes are no multiple of uint16"),
        ("float.npy", np.zeros(4), "holds float64 of shape"),
        ("square.npy", np.zeros((2, 2), np.int64), r"of shape \(2, 2\)"),
        ("text.npy", b"not an array", "is no file of tokens"),
        ("pickle.npy", np.array([{}], dtype=object), "is no file of tokens"),
    ],
)
def test_a_file_that_is_not_of_tokens_is_named(tmp_path, name, content, says):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(ConfigurationError, match=says) as caught:
        MappedTokens([path], "uint16")
    assert str(path) in str(caught.value)


def test_a_token_beyond_the_vocabulary_is_named_with_its_place(tmp_path):
    paths, whole = files(tmp_path)
    top = int(whole[51:].max())
    at = int((whole[51:] == top).nonzero()[0])
    tokens = MappedTokens(paths, "uint16", top)
    with pytest.raises(
        ConfigurationError, match=rf"c\.npy has token {top} at position {at}; model"
    ):
        tokens[60:84] if at >= 9 else tokens[51:84]
    np.save(paths[1], np.array([-3]))
    with pytest.raises(ConfigurationError, match=r"b\.npy has token -3 at position 0"):
        MappedTokens(paths, "uint16", 500)[50:51]


def token_values(root, out):
    """Return the tiny run on pairs of bytes, of which the excerpt has fewer than 600."""
    values = tiny_values(root, out)
    text = np.frombuffer(EXCERPT.read_bytes(), np.uint8)[: 2 * 6000].reshape(-1, 2)
    pairs, ids = np.unique(text, axis=0, return_inverse=True)
    ids = ids.reshape(-1).astype("<u2")
    ids[:-1000].tofile(root / "train.bin")
    np.save(root / "held.npy", ids[-1000:])
    values["data"] |= {"files": "*.[bn][ip][ny]", "held_out": ["held.npy"], "kind": "tokens"}
    values["model"]["vocab_size"] = -(-len(pairs) // 4) * 4
    return values


def test_a_run_on_tokens_ends_in_a_model_that_takes_them(tmp_path):
    root = tmp_path / "tokens"
    values = token_values(root, tmp_path / "out")
    result = train(TrainConfig.from_dict(values))
    assert result.held_out_bits_per_byte is None
    assert result.held_out_bytes is None
    assert result.held_out_tokens == 1000
    assert 0 < result.held_out_bits_per_token == result.bits < 9
    assert "bits/token over 1,000 tokens" in result.summary
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert any("bits_per_token" in row for row in rows)
    assert any("held_out_bits_per_token" in row for row in rows)
    assert not any("bits_per_byte" in row for row in rows)
    model = bt.load(result.model)
    assert (
        model.model(torch.zeros(1, 3, dtype=torch.int64)).shape[-1] == values["model"]["vocab_size"]
    )
    with pytest.raises(bt.BitNetError, match="give input_ids instead of text"):
        model.generate("text", max_new_tokens=1)
    assert train(TrainConfig.from_dict(values), resume=True).bits == result.bits


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "words"}, "data.kind must be one of"),
        ({"kind": "tokens", "token_dtype": "float32"}, "data.token_dtype must be one of"),
        ({"kind": "tokens", "cleaning": "markdown"}, "data.cleaning must be 'none' where"),
        ({"tokenizer": "folder"}, "data.tokenizer must be empty where"),
    ],
)
def test_settings_of_the_other_kind_are_refused(tmp_path, change, says):
    values = tiny_values(tmp_path, tmp_path / "out")
    values["data"] |= change
    with pytest.raises(ConfigurationError, match=says):
        TrainConfig.from_dict(values)
