"""What the command line names: a factory of a model, a configuration of transformers, or a safetensors checkpoint.

Files are believed after they are checked: headers as ``tierpage.load`` checks them, a configuration as bounded JSON that
may name no code of its own.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tierpage._checkpoint.files import StoredTensor, load_json, open_checkpoint
from tierpage._estimate.errors import EstimateError

__all__ = ["Subject", "callable_named", "subject_of"]

_CONFIG_BYTES_MAX = 10_000_000
_CONFIG_NUMBER_MAX = 1 << 24  # no width, vocabulary or length of a model that exists is larger
_LAYERS_MAX = 2_000
_LAYER_NAMES = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Subject:
    """``make``, which returns the model and is called on fake tensors, or ``tensors`` of a checkpoint, or ``program``: a
    script, or "-m" and a module, and its arguments."""

    name: str
    make: Callable[[], nn.Module] | None = None
    tensors: tuple[StoredTensor, ...] = ()
    program: tuple[str, ...] = ()
    vocabulary: int = 0  # 0: not known
    dtype: torch.dtype | None = None  # in which it is meant to run; None: as ``make`` makes it
    caches: bool = False  # takes and returns past_key_values


def subject_of(text: str) -> Subject:
    """``module:factory``, a folder, a config.json, or a checkpoint. Raises EstimateError, CheckpointError, OSError."""
    path = Path(text)
    if _CALLABLE.fullmatch(text) and not path.exists():
        return Subject(text, make=_checked(text, callable_named(text)))
    if not text or not path.exists():
        raise EstimateError(
            f"{text!r} is neither module:factory nor a file or folder that is there. Give a callable such as "
            "package.models:build, a folder or config.json of transformers, or a .safetensors file."
        )
    if path.is_dir() and (path / "config.json").is_file():
        return _of_config(path / "config.json")
    if path.suffix == ".json" and not path.name.endswith(".index.json"):
        return _of_config(path)
    return _of_checkpoint(path)


def callable_named(text: str) -> Callable[..., Any]:
    """What ``module:name`` means; modules are looked for in the current folder first. Raises EstimateError."""
    module_name, colon, name = text.partition(":")
    if not colon or not _CALLABLE.fullmatch(text):
        raise EstimateError(f"{text!r} is not module:callable, such as package.models:build.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # whatever the module raises
        raise EstimateError(f"{text!r} cannot be imported from {here!r}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise EstimateError(f"{text!r} is of type {type(found).__name__}, not something to be called.")
    return found  # type: ignore[no-any-return]


def _checked(name: str, factory: Callable[..., Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        try:
            model = factory()
        except (Exception, SystemExit) as error:
            raise EstimateError(
                f"{name!r} raised {type(error).__name__}: {error}\nIt is called without arguments and on fake tensors, "
                "which have no content: it must make its parameters on the default device and read none of them."
            ) from error
        if not isinstance(model, nn.Module):
            raise EstimateError(f"{name!r} returned a value of type {type(model).__name__}, not a torch.nn.Module.")
        return model

    return make


def _of_config(path: Path) -> Subject:
    fields = _read_config(path)
    try:
        import transformers
    except ImportError as error:
        raise EstimateError(
            f"{str(path)!r} is a configuration of transformers, which cannot be imported ({error}): pip install "
            "transformers, or give the model as module:factory."
        ) from None
    kind = fields.pop("model_type")
    dtype = fields.pop("torch_dtype", None)
    dtype = fields.pop("dtype", dtype)
    try:
        config = transformers.AutoConfig.for_model(kind, **fields)
        config.use_cache = True
    except Exception as error:
        raise EstimateError(f"transformers refuses {str(path)!r}: {type(error).__name__}: {error}") from error

    def build() -> nn.Module:
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        assert isinstance(model, nn.Module)
        return model

    wanted = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    return Subject(
        str(path),
        make=_checked(str(path), build),
        vocabulary=int(getattr(config, "vocab_size", 0) or 0),
        dtype=wanted if isinstance(wanted, torch.dtype) and wanted.is_floating_point else None,
        caches=True,
    )


def _read_config(path: Path) -> dict[str, Any]:
    """The object in the file, without numbers that would make a model that cannot be. Raises EstimateError."""
    with open(path, "rb") as stream:
        text = stream.read(_CONFIG_BYTES_MAX + 1)
    try:
        if len(text) > _CONFIG_BYTES_MAX:
            raise ValueError(f"it has more than {_CONFIG_BYTES_MAX} bytes")
        fields = load_json(text)
        if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
            raise ValueError("it is not an object with a model_type")
        if "auto_map" in fields:
            raise ValueError("it wants code of its own to run (auto_map): import that and give module:factory")
        if fields.get("quantization_config") is not None:
            raise ValueError("its weights are quantized, which needs their kernels: give module:factory")
        _check_numbers(fields)
    except ValueError as error:
        raise EstimateError(f"{str(path)!r} is no configuration that can be estimated: {error}.") from None
    return fields


def _check_numbers(value: Any, name: str = "") -> None:
    most = _LAYERS_MAX if name in _LAYER_NAMES else _CONFIG_NUMBER_MAX
    if isinstance(value, int) and abs(value) > most:
        raise ValueError(f"{name} is {value!r:.40}, more than {most}")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, name)


def _of_checkpoint(path: Path) -> Subject:
    files = open_checkpoint(path)
    try:
        tensors = [tensor for file in files for tensor in file.tensors.values()]
    finally:
        for file in files:
            file.close()
    if not tensors:
        raise EstimateError(f"{str(path)!r} holds no tensors.")
    return Subject(str(path), tensors=tuple(sorted(tensors, key=lambda tensor: _as_counted(tensor.name))))


def _as_counted(name: str) -> list[tuple[int, str]]:
    """Names in the order of their numbers: layers.2 before layers.10."""
    parts = re.split(r"([0-9]{1,18})", name)  # every other one is a number
    return [(int(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)]
