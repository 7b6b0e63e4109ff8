"""A file that is written is read, by us and by the gguf package; a damaged one is refused."""

import contextlib
import struct

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_torch.errors import CheckpointError
from bitnet_torch.io.gguf import types
from bitnet_torch.io.gguf.bounded import MAX_ARRAY
from bitnet_torch.io.gguf.file import open_gguf
from bitnet_torch.io.gguf.writer import Planned, write_gguf

METADATA = {
    "general.architecture": "llama",
    "a.count": 7,
    "a.real": 0.5,
    "a.flag": True,
    "a.texts": ["x", "", "añ"],
    "a.integers": [1, -2, 3],
    "a.reals": [0.5, -1.0],
    "a.nothing": [],
}
PLAN = [
    Planned("one", types.F32, (3,)),
    Planned("two", types.TQ2_0, (2, 256)),
    Planned("three", types.F16, (2, 5)),
]
TENSORS = [torch.arange(p.nbytes, dtype=torch.int32).to(torch.uint8) for p in PLAN]


def write(path, metadata=METADATA, plan=PLAN, tensors=TENSORS):
    with path.open("wb") as file:
        write_gguf(file, lambda: metadata, plan, [[t] for t in tensors])
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "m.gguf")


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught, open_gguf(path):
        pass
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read(path):
    with open_gguf(path) as file:
        meta = file.metadata
        assert meta.names() == list(METADATA)
        assert meta.integer("a.count") == 7
        assert meta.real("a.real") == 0.5
        assert meta.flag("a.flag") is True
        assert list(meta.texts("a.texts")) == METADATA["a.texts"]
        assert meta.numbers("a.integers").tolist() == [1, -2, 3]
        assert meta.numbers("a.reals").tolist() == [0.5, -1.0]
        assert len(meta.texts("a.nothing")) == 0
        for planned, data in zip(PLAN, TENSORS, strict=True):
            stored = file.tensors[planned.name]
            assert (stored.kind, stored.shape) == (planned.kind, planned.shape)
            assert torch.equal(file.read(stored), data)
            assert torch.equal(file.read(stored, 3, 4), data[3:7])


def test_the_gguf_package_reads_what_is_written(path):
    reader = gguf.GGUFReader(path)
    for key, value in METADATA.items():
        assert reader.fields[key].contents() == value
    for tensor, planned, data in zip(reader.tensors, PLAN, TENSORS, strict=True):
        assert (tensor.name, tensor.tensor_type.name) == (planned.name, planned.kind.name)
        assert tuple(tensor.shape[::-1]) == planned.shape
        assert torch.equal(torch.from_numpy(tensor.data.copy()).view(torch.uint8).reshape(-1), data)


def test_what_the_gguf_package_writes_is_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint64("a.long", 1 << 40)
    writer.add_int8("a.small", -3)
    writer.add_float64("a.double", 0.1)
    writer.add_array("a.flags", [True, False])
    data = torch.randn(2, 32)
    writer.add_tensor("t", data.numpy())
    writer.add_custom_alignment(64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(tmp_path / "m.gguf") as file:
        assert file.metadata.integer("a.long") == 1 << 40
        assert file.metadata.integer("a.small") == -3
        assert file.metadata.real("a.double") == 0.1
        assert file.metadata.numbers("a.flags").tolist() == [True, False]
        stored = file.tensors["t"]
        assert torch.equal(file.read(stored).view(torch.float32).view(stored.shape), data)


@pytest.mark.parametrize(
    ("key", "getter"),
    [
        ("a.real", "integer"),
        ("a.flag", "integer"),
        ("a.texts", "real"),
        ("a.count", "flag"),
        ("a.count", "text"),
        ("a.integers", "texts"),
        ("a.texts", "numbers"),
        ("absent", "integer"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_key(path, key, getter):
    with open_gguf(path) as file, pytest.raises(CheckpointError, match=f"'{key}'"):
        getattr(file.metadata, getter)(key)


def test_a_missing_file_and_another_format_say_so(tmp_path):
    refused(tmp_path / "absent.gguf", "cannot be read")
    (tmp_path / "zip").write_bytes(b"PK" + bytes(40))
    refused(tmp_path / "zip", "not a GGUF file")


def change(path, find, put, skip=0):
    data = bytearray(path.read_bytes())
    at = data.index(find) + len(find) + skip
    data[at : at + len(put)] = put
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("version", "match"), [(1, "version 1 is"), (4, "version 4"), (3 << 24, "3 in big-endian")]
)
def test_other_versions_are_refused(path, version, match):
    change(path, b"GGUF", struct.pack("<I", version))
    refused(path, match)


HUGE = struct.pack("<Q", 1 << 62)


@pytest.mark.parametrize(
    ("find", "put", "skip", "match"),
    [
        (b"GGUF", HUGE, 4, "the number of tensors"),
        (b"GGUF", struct.pack("<Q", MAX_ARRAY), 4, f"{MAX_ARRAY}|needs"),
        (b"GGUF", HUGE, 12, "the number of metadata keys"),
        (b"a.texts", HUGE, 8, "'a.texts' says"),
        (b"a.texts", struct.pack("<I", 9), 4, "'a.texts' is an array of type 9"),
        (b"a.texts", struct.pack("<I", 13), 0, "'a.texts' has type 13"),
        (b"a.texts", HUGE, 16, r"'a.texts' \[0\]"),
        (b"a.texts", b"\xff", 24, r"'a.texts' \[0\] is not UTF-8"),
        (b"a.integers", HUGE, 8, "'a.integers' says"),
        (b"a.flag", b"\x02", 4, "'a.flag' must be 0 or 1, got 2"),
        (b"two", struct.pack("<I", 5), 0, "'two' has 5 dimensions"),
        (b"two", HUGE, 4, "'two' has shape"),
        (b"two", bytes(8), 4, "'two' has shape"),
        (b"two", struct.pack("<Q", 128), 4, "'two' is TQ2_0 and has rows of 128"),
        (b"two", struct.pack("<I", 12), 20, "'two' has type 12; supported are TQ1_0"),
        (b"two", struct.pack("<Q", 33), 24, "offset 33, not a multiple of 32"),
        (b"two", struct.pack("<Q", 0), 24, "'one' and 'two' overlap"),
        (b"two", struct.pack("<Q", 1 << 40), 24, "'two' ends at byte"),
    ],
)
def test_a_lie_in_the_head_is_refused_by_name(path, find, put, skip, match):
    change(path, find, put, skip)
    refused(path, match)


def test_names_that_occur_twice_are_refused(tmp_path):
    refused(write(tmp_path / "t", plan=PLAN[:1] * 2, tensors=TENSORS[:1] * 2), "'one' occurs twice")
    keyed = write(tmp_path / "k")
    keyed.write_bytes(keyed.read_bytes().replace(b"a.flag", b"a.real"))
    refused(keyed, "'a.real' occurs twice")


@pytest.mark.parametrize("alignment", [0, 3, 1 << 20])
def test_an_alignment_that_is_none_is_refused(tmp_path, alignment):
    refused(write(tmp_path / "m", {"general.alignment": alignment}), "general.alignment must be")


def test_a_file_cut_anywhere_is_refused(path):
    whole = path.read_bytes()
    for size in range(0, len(whole) - 31, 7):
        path.write_bytes(whole[:size])
        refused(path, "bytes|not a GGUF|the file has|ends at")


def test_a_file_that_shrinks_while_it_is_open_is_noticed(tmp_path):
    size = 1 << 20  # more than a file object holds
    big = [torch.zeros(size, dtype=torch.uint8)]
    path = write(tmp_path / "m.gguf", plan=[Planned("big", types.F32, (size // 4,))], tensors=big)
    with open_gguf(path) as file:
        with path.open("r+b") as other:
            other.truncate(file.tensors["big"].offset + size - 2)
        with pytest.raises(CheckpointError, match=f"'big': wanted {size} bytes, got {size - 2}"):
            file.read(file.tensors["big"])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_is_refused_or_harmless(data, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("d") / "m.gguf")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError), open_gguf(path) as file:
        for stored in file.tensors.values():
            assert file.read(stored).numel() == stored.nbytes


def test_a_plan_that_the_tensors_do_not_fit_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="'one' has 8 bytes, planned were 12"):
        write(tmp_path / "m", tensors=[TENSORS[0][:8], *TENSORS[1:]])
    with pytest.raises(CheckpointError, match=r"'a\.count' must be in"):
        write(tmp_path / "m", {"a.count": -1})
