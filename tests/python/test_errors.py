"""Error classes: what they are, what they say, and the phrase that other projects look for."""

from __future__ import annotations

import errno
import pickle

import pytest
import torch

from tierpage import errors


def looks_like_out_of_memory(error: BaseException) -> bool:
    """The rule of accelerate's should_reduce_batch_size."""
    return isinstance(error, RuntimeError) and len(error.args) == 1 and " out of memory." in error.args[0]


@pytest.mark.parametrize("message", ["", "addmm needs 3 GiB", "tierpage is out of memory. addmm"])
def test_out_of_memory_is_recognised(message):
    error = errors.OutOfMemoryError(message)
    assert looks_like_out_of_memory(error)
    assert "CUDA" in error.args[0], "Lightning's is_oom_error wants it"
    assert message in str(error)
    for kind in (errors.TierpageError, torch.OutOfMemoryError, torch.cuda.OutOfMemoryError, MemoryError):
        assert isinstance(error, kind)


@pytest.mark.parametrize("code", range(2, errors.INTERNAL + 1))
def test_every_code_has_a_class(code):
    error = errors.make_error(code, "what happened: 3 of 4 bytes")
    assert type(error) is errors.class_for(code)
    assert "what happened: 3 of 4 bytes" in str(error)
    if code != errors.INTERRUPTED:
        assert isinstance(error, errors.TierpageError)
        assert str(error).count("Remedy:") == 1
    assert str(errors.make_error(code, str(error))).count("Remedy:") == str(error).count("Remedy:")


def test_table_for_the_torch_library():
    table = errors.class_table()
    assert len(table) == errors.INTERNAL + 1
    assert table[errors.OUT_OF_MEMORY] is errors.OutOfMemoryError
    assert table[errors.STORAGE_FULL] is errors.StorageFullError
    assert all(issubclass(kind, BaseException) for kind in table)


def test_storage_errors_carry_errno():
    assert errors.make_error(errors.STORAGE_ERROR, "write failed", errno.EIO).errno == errno.EIO
    assert errors.StorageError("pwrite: errno 5 at 4096").errno == 5
    assert errors.StorageFullError("no room").errno == errno.ENOSPC
    assert errors.StorageError("unknown").errno is None
    error = errors.StorageError("write failed", errno.EIO)
    assert isinstance(error, OSError)
    assert str(error) == "write failed"


@pytest.mark.parametrize("error", [errors.OutOfMemoryError("x"), errors.StorageError("x", 5), errors.ConfigError("x")])
def test_errors_pickle(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
    assert getattr(again, "errno", None) == getattr(error, "errno", None)


def test_config_error_is_a_value_error():
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.TierpageWarning, UserWarning)
