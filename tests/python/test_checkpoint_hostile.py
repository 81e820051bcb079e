"""Checkpoint files from elsewhere: whatever is wrong in them is refused with a clear error, within bounded memory, and what
the safetensors library takes is taken."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings

from checkpoints import write_raw
from tierpage import CheckpointError
from tierpage._checkpoint.files import CheckpointFile, open_checkpoint

EXAMPLES = int(os.environ.get("TIERPAGE_TEST_EXAMPLES", "300"))  # a long run by hand: 20000


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    shown = [list(value) if isinstance(value, tuple) else value for value in (shape, offsets)]
    return {"dtype": dtype, "shape": shown[0], "data_offsets": shown[1]}


MALFORMED: dict[str, tuple[Any, bytes, str]] = {
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), "overlaps"),
    "the same place twice": ({"a": entry(), "b": entry()}, bytes(8), "overlaps"),
    "a hole": ({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20), "hole"),
    "a hole in front": ({"a": entry(offsets=(4, 12))}, bytes(12), "hole"),
    "bytes behind": ({"a": entry()}, bytes(9), "the file at"),
    "beyond the end": ({"a": entry(offsets=(0, 8))}, bytes(7), "lies at"),
    "far beyond the end": ({"a": entry(shape=(2**61,), offsets=(0, 2**63 - 1))}, bytes(8), "lies at"),
    "backwards": ({"a": entry(offsets=(8, 0))}, bytes(8), "lies at"),
    "negative": ({"a": entry(offsets=(-8, 0))}, bytes(8), "data_offsets"),
    "wrong size": ({"a": entry(shape=(3,))}, bytes(8), "does not have 8 bytes"),
    "overflow to the right size": ({"a": entry(shape=(2**62, 4, 2))}, bytes(8), "does not have 8 bytes"),
    "overflow beside nothing": ({"a": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}, b"", "does not have 0 bytes"),
    "negative shape": ({"a": entry(shape=(-2, -1))}, bytes(8), "shape"),
    "fractional shape": ({"a": entry(shape=(2.0,))}, bytes(8), "shape"),
    "true as a number": ({"a": entry(shape=(True, 2))}, bytes(8), "shape"),
    "text as a number": ({"a": entry(shape=("2",))}, bytes(8), "shape"),
    "shape is no list": ({"a": entry(shape=2)}, bytes(8), "shape"),
    "three offsets": ({"a": entry(offsets=(0, 8, 8))}, bytes(8), "lies at"),
    "many dimensions": ({"a": entry(shape=(1,) * 65 + (2,))}, bytes(8), "dimensions"),
    "unknown dtype": ({"a": entry(dtype="F31")}, bytes(8), "dtype"),
    "dtype is no text": ({"a": entry(dtype=[1])}, bytes(8), "dtype"),
    "missing field": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "something else"),
    "entry is no object": ({"a": [1, 2]}, bytes(8), "something else"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    "metadata is a list": ({"__metadata__": []}, b"", "__metadata__"),
    "a list": ("[]", b"", "begin with"),
    "leading blank": (" {}", b"", "begin with"),
    "no JSON": ("{,}", b"", "cannot be loaded"),
    "two documents": ("{}{}", b"", "cannot be loaded"),
    "duplicate names": ('{"a":%s,"a":%s}' % ((json.dumps(entry()),) * 2), bytes(8), "twice"),
    "duplicate fields": ('{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8), "twice"),
    "not a number": ('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8), "NaN"),
    "a huge number": ('{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % ("9" * 5000), bytes(8), "cannot be"),
    "not UTF-8": (b'{"\xff":1}', b"", "UTF-8"),
    "half a character": (f'{{"\\ud800":{json.dumps(entry())}}}', bytes(8), "not text"),
    "nested deeply": ('{"a":' + "[" * 200_000 + "]" * 200_000 + "}", b"", "cannot be"),
    "empty header": ("", b"", "begin with"),
}


# What version 0.8.0 of the library takes: which of two entries counts, and what torch cannot make.
STRICTER = {"duplicate names", "leading blank", "many dimensions", "overflow beside nothing"}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_headers_are_refused(name: str, tmp_path: Path) -> None:
    header, content, message = MALFORMED[name]
    path = write_raw(tmp_path / "bad.safetensors", header, content)
    with pytest.raises(CheckpointError, match="Remedy:") as error:
        CheckpointFile(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1200
    if name not in STRICTER:
        with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(path, "pt"):
            pass


@pytest.mark.parametrize("content", [b"", b"\0\0\0", bytes(8), b"\x02" + bytes(7) + b"{"])
def test_files_too_short_for_a_header(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        CheckpointFile(path)


@pytest.mark.parametrize("length", [3, 1000, 100_000_001, 2**62, 2**64 - 1])
def test_lengths_that_lie(length: int, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "long.safetensors", "{}", length=length)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="its header would have"):
        CheckpointFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_header_of_the_largest_size_costs_memory_in_proportion(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "heavy.safetensors", b'{"a":[' + b"{}," * 33_000_000 + b"0]}")
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="values"):
        CheckpointFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250_000_000


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        CheckpointFile(tmp_path / "pipe.safetensors")  # and does not wait for a writer
    with pytest.raises(CheckpointError, match="not a regular file"):
        CheckpointFile(Path("/dev/zero"))


BAD_INDICES: dict[str, tuple[Any, str]] = {
    "parent": ({"weight_map": {"a": "../other/a.safetensors"}}, "not a name in its folder"),
    "absolute": ({"weight_map": {"a": "/etc/passwd"}}, "not a name in its folder"),
    "dots": ({"weight_map": {"a": ".."}}, "not a name in its folder"),
    "zero byte": ({"weight_map": {"a": "a\0b"}}, "not a name in its folder"),
    "empty": ({"weight_map": {"a": ""}}, "not a name in its folder"),
    "number": ({"weight_map": {"a": 1}}, "no weight_map"),
    "none": ({"metadata": {}}, "no weight_map"),
    "list": ([], "no weight_map"),
    "no JSON": ("{", "cannot be loaded"),
    "promise": ({"weight_map": {"b": "good.safetensors"}}, "promises tensor 'b'"),
}


@pytest.mark.parametrize("name", BAD_INDICES)
def test_bad_indices_are_refused(name: str, tmp_path: Path) -> None:
    content, message = BAD_INDICES[name]
    write_raw(tmp_path / "good.safetensors", {"a": entry()}, bytes(8))
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CheckpointError, match="Remedy:") as error:
        open_checkpoint(tmp_path)
    assert message in str(error.value)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_raw(tmp_path / f"{name}.safetensors", {"a": entry()}, bytes(8))
    with pytest.raises(CheckpointError, match="stands in"):
        open_checkpoint(tmp_path)


def test_shards_without_their_index_are_refused(tmp_path: Path) -> None:
    write_raw(tmp_path / "model-00001-of-00002.safetensors", {"a": entry()}, bytes(8))
    with pytest.raises(CheckpointError, match="no index of shards"):
        open_checkpoint(tmp_path)


def library_takes(path: Path) -> dict[str, tuple[Any, ...]] | None:
    try:
        with safetensors.safe_open(path, "pt") as opened:
            names = opened.keys()
            return {name: (opened.get_tensor(name).dtype, tuple(opened.get_tensor(name).shape)) for name in names}
    except Exception:
        return None


numbers = st.one_of(
    st.integers(-1, 20), st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, 2**70]), st.booleans(), st.floats()
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BOOL", "BF16", "F64", "X", 3, None]),
        "shape": st.lists(numbers, max_size=3),
        "data_offsets": st.lists(numbers, max_size=3),
    },
    optional={"extra": st.none()},
)
headers = st.dictionaries(
    st.one_of(st.text(max_size=3), st.just("__metadata__")), st.one_of(entries, st.none(), st.text()), max_size=4
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=headers, size=st.integers(0, 40))
def test_random_headers_are_taken_or_refused_as_by_the_library(header: Any, size: int, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "random.safetensors", header, bytes(size))
    check_against_library(path)


@settings(max_examples=2 * EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_files_with_changed_bytes(data: st.DataObject, tmp_path: Path) -> None:
    good = write_raw(
        tmp_path / "good", {"ab": entry(), "c": entry("U8", (3,), (8, 11)), "d": entry("I64", (), (11, 19))}, bytes(19)
    )
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.one_of(st.sampled_from(b'0123456789[]{},:" -'), st.integers(0, 255)))
    path = tmp_path / "changed.safetensors"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    check_against_library(path)


def check_against_library(path: Path) -> None:
    theirs = library_takes(path)
    try:
        file = CheckpointFile(path)
    except CheckpointError:
        ours = None
    else:
        ours = {name: (tensor.dtype, tensor.shape) for name, tensor in file.tensors.items()}
        end = file.bytes
        assert all(0 <= tensor.offset <= tensor.offset + tensor.bytes <= end for tensor in file.tensors.values())
        assert all(
            tensor.bytes == torch.Size(tensor.shape).numel() * tensor.dtype.itemsize for tensor in file.tensors.values()
        )
        file.close()
    if ours is not None and theirs is not None:
        assert ours == theirs
    # Stricter than the library in places (fields that nobody knows); never the other way round.
    assert not (ours is not None and theirs is None), ours
