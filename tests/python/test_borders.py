"""Where a value goes from one part to the next, what is unknown is an error, and both sides have one list.

Arguments of ``enable`` and TIERPAGE_CONF: test_config.py and test_api_bad_input.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: F401  (before the engine's module)

from tierpage import errors, native, page_code
from tierpage.settings import SETTINGS, Config
from tierpage.storage import Backend

engine = pytest.importorskip("tierpage._C")

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024**2


def options(**changed: Any) -> dict[str, Any]:
    config = Config("cpu", 0, 8 * MIB, 8 * MIB, 0, None)
    parts = (config.engine_options(), Backend("direct", "").engine_options(), page_code.engine_options(config))
    return {name: value for part in (*parts, changed) for name, value in part.items()}


def refused(call: Any, *arguments: Any) -> str:
    """The message of the ConfigError that the call ends with."""
    with pytest.raises(errors.ConfigError) as caught, native.translated():
        call(*arguments)
    return str(caught.value)


def test_settings_and_the_engines_options_are_one_list() -> None:
    words = engine.option_words()
    assert set(options()) == set(words)
    made = {"device_index", "storage", "code_kernels", "code_refusal"}  # of settings
    assert {name for name, setting in SETTINGS.items() if setting.in_engine} == set(words) - made
    for name, setting in SETTINGS.items():
        if setting.words and setting.in_engine:
            assert set(words.pop(name)) == set(setting.words), name
    assert words.pop("device") == ["cpu", "cuda"]
    backends = [Backend("direct", ""), Backend("kvikio", ""), Backend("kvikio", "", to_device=True)]
    assert words.pop("storage") == [backend.engine_options()["storage"] for backend in backends]
    assert not any(words.values())


def test_an_option_that_the_engine_does_not_know_is_refused() -> None:
    assert "no option 'polcy'" in refused(engine.Runtime, options(polcy="auto"))


@pytest.mark.parametrize("name", sorted(options()))
def test_an_option_that_is_missing_or_of_another_kind_is_refused(name: str) -> None:
    given = options()
    del given[name]
    assert f"option {name} is missing" in refused(engine.Runtime, given)
    assert name in refused(engine.Runtime, options(**{name: object()}))


@pytest.mark.parametrize("name", sorted(name for name, words in engine.option_words().items() if words))
def test_a_word_that_the_engine_does_not_know_is_refused(name: str) -> None:
    message = refused(engine.Runtime, options(**{name: "wrong"}))
    assert f"{name} cannot be 'wrong'" in message
    assert all(repr(word) in message for word in engine.option_words()[name])


@pytest.mark.parametrize(
    ("name", "value"), [("paranoid", 1), ("prefetch", "no"), ("io_workers", 2.5), ("device_budget", -1)]
)
def test_a_value_is_not_bent_into_shape(name: str, value: object) -> None:
    assert f"option {name} cannot be {value!r}" in refused(engine.Runtime, options(**{name: value}))


def test_a_device_or_tier_that_the_engine_does_not_know_is_refused(tmp_path: Path) -> None:
    for call, arguments in (
        (engine.probe_device, ("tpu", 0)),
        (engine.measure_links, ("tpu",)),
        (engine.compare_storage, ("tpu", 0, str(tmp_path), False)),
    ):
        assert "device cannot be 'tpu'" in refused(call, *arguments)
    runtime = engine.Runtime(options())
    try:
        assert "tier cannot be 'disk': it is one of 'device', 'host', 'nvme'" in refused(
            runtime.set_budget, "disk", MIB
        )
    finally:
        runtime.shutdown()


def test_a_switch_that_the_torch_library_does_not_know_is_refused() -> None:
    assert "no such option: defferal" in refused(native.TorchLibrary.load().set_option, "defferal", True)


def test_codes_are_one_list() -> None:
    """The engine's two lists are compared when it is compiled (csrc/python/codes.cpp)."""
    codes = engine.status_codes()
    assert codes == {name: getattr(errors, name) for name in codes}
    assert len(codes) == errors.INTERNAL + 1 == len(errors.class_table())
    assert set(errors.REMEDIES) <= set(codes.values())
    for path, pattern in (
        ("csrc/torch/errors.h", r"kErrorTypeCount = (\d+|TP_INTERNAL \+ 1);"),
        ("tests/torch_fake_engine/check.py", r"CODES = \d+, \d+, (\d+)$"),
    ):
        found = re.search(pattern, (ROOT / path).read_text(), re.MULTILINE)
        assert found is not None, path
        assert found[1] in (str(len(codes)), "TP_INTERNAL + 1"), path
