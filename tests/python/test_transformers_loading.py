"""``tierpage.transformers.file_backed``: the parameters of ``from_pretrained`` by bits, none of them read before its
use, and transformers' own way, with the reason, where that cannot be."""

from __future__ import annotations

import gc
import inspect
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import harness
import tierpage
from checkpoints import read_count, same
from tierpage.errors import CheckpointError

transformers = pytest.importorskip("transformers")

from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer  # noqa: E402
from transformers.utils.quantization_config import QuantizationConfigMixin  # noqa: E402

import tierpage.transformers  # noqa: E402
from tierpage._transformers import files, loading  # noqa: E402

SHAPE = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
file_backed = tierpage.transformers.file_backed


def llama(**more: Any) -> Any:
    torch.manual_seed(7)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **more))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied weights, in shards."""
    path = tmp_path_factory.mktemp("model")
    llama(tie_word_embeddings=True).save_pretrained(path, max_shard_size="200KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


@pytest.fixture
def switch_on(tmp_path: Path) -> Iterator[Callable[..., None]]:
    (tmp_path / "spill").mkdir()

    def on(configuration: str = "clock") -> None:
        tierpage.enable(**(harness.settings(configuration, str(tmp_path / "spill")) or {}))

    yield on
    gc.collect()
    tierpage.disable()


def from_pretrained(folder: Path, automatic: Any = None, **more: Any) -> Any:
    if harness.DEVICE != "cpu":
        more.setdefault("device_map", tierpage.config().device if tierpage.is_enabled() else harness.DEVICE)
    automatic = automatic or transformers.AutoModelForCausalLM
    return automatic.from_pretrained(folder, **more)


def aligned(model: Any) -> Any:
    """The same weights in memory of their own. Transformers' are views of the file, and begin anywhere in it: with them
    some CPU kernels round in another way than with a copy of the same bits."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def content(model: Any) -> dict[str, torch.Tensor]:
    """Parameters under all their names, and buffers."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def in_their_files(model: Any) -> bool:
    """Nothing of the parameters is anywhere else."""
    places = [tierpage.where(parameter) for parameter in model.parameters()]
    smallest = tierpage.config().min_paged_bytes
    return all(
        place.checkpoint >= place.bytes and place.device == place.host == 0
        for place in places
        if place.bytes >= smallest
    )


def same_model(plain: Any, model: Any) -> None:
    assert type(plain) is type(model)
    assert plain.training == model.training
    wanted = {name: parameter.requires_grad for name, parameter in plain.named_parameters()}
    assert wanted == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    same(content(plain), content(model))


@pytest.mark.parametrize("configuration", ["prefetch", "clock", "paranoid"])
def test_bits_are_those_of_from_pretrained_and_nothing_is_read(
    switch_on: Callable[..., None], folder: Path, configuration: str
) -> None:
    plain = aligned(from_pretrained(folder))
    ids = torch.arange(12, device=harness.DEVICE)[None]
    with torch.no_grad():
        expected = plain(ids).logits
    switch_on(configuration)
    with file_backed():
        model = from_pretrained(folder)
    assert read_count() == 0
    assert in_their_files(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)
    assert read_count() > 0
    same_model(plain, model)


def test_one_file_and_the_class_itself(switch_on: Callable[..., None], tmp_path: Path) -> None:
    llama(tie_word_embeddings=False).save_pretrained(tmp_path / "model")
    plain = from_pretrained(tmp_path / "model")
    switch_on()
    with file_backed():
        model = from_pretrained(tmp_path / "model", transformers.LlamaForCausalLM)
    assert read_count() == 0
    assert in_their_files(model)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    same_model(plain, model)


def test_another_dtype_is_converted_into_paged_memory(switch_on: Callable[..., None], folder: Path) -> None:
    plain = from_pretrained(folder, dtype=torch.bfloat16)
    switch_on()
    with file_backed():
        model = from_pretrained(folder, dtype=torch.bfloat16)
    places = [tierpage.where(parameter) for parameter in model.parameters()]
    assert all(place.paged and place.checkpoint == 0 for place in places)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    same_model(plain, model)


def test_experts_that_are_merged_while_they_load(switch_on: Callable[..., None], tmp_path: Path) -> None:
    torch.manual_seed(7)
    config = transformers.MixtralConfig(**SHAPE, num_local_experts=3)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
    plain = from_pretrained(tmp_path / "model")
    switch_on()
    with file_backed():
        model = from_pretrained(tmp_path / "model")
    assert tierpage.where(model.model.layers[0].self_attn.q_proj.weight).checkpoint > 0
    same_model(plain, model)


def test_weights_that_the_files_lack_are_made_as_ever(switch_on: Callable[..., None], folder: Path) -> None:
    automatic = transformers.AutoModelForSequenceClassification
    torch.manual_seed(11)
    plain = from_pretrained(folder, automatic)
    switch_on()
    torch.manual_seed(11)
    with file_backed():
        model = from_pretrained(folder, automatic)
    assert read_count() == 0
    same_model(plain, model)


@pytest.mark.parametrize("cache", [None, "static"])
def test_generate_with_each_cache(switch_on: Callable[..., None], folder: Path, cache: str | None) -> None:
    given = {
        "inputs": torch.arange(10, device=harness.DEVICE)[None], "attention_mask": torch.ones(1, 10, dtype=torch.long),
        "max_new_tokens": 12, "do_sample": False, "output_scores": True, "return_dict_in_generate": True,
        **({} if cache is None else {"cache_implementation": cache}),
    }  # fmt: skip
    given["attention_mask"] = given["attention_mask"].to(harness.DEVICE)
    expected = aligned(from_pretrained(folder)).generate(**given)
    switch_on()
    with file_backed():
        model = from_pretrained(folder)
    found = model.generate(**given)
    assert torch.equal(found.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(found.scores, expected.scores, strict=True))


def test_a_model_is_saved_over_the_files_that_it_lies_in(
    switch_on: Callable[..., None], folder: Path, tmp_path: Path
) -> None:
    plain = from_pretrained(folder)
    plain.save_pretrained(tmp_path / "model")
    switch_on()
    with file_backed():
        model = from_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    same_model(plain, model)
    with file_backed():
        again = from_pretrained(tmp_path / "model")
    same_model(plain, again)


def test_training_unties_from_the_file_what_it_writes(switch_on: Callable[..., None], folder: Path) -> None:
    ids = torch.arange(12, device=harness.DEVICE)[None]

    def train(model: Any) -> Any:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    before = {path: path.read_bytes() for path in folder.glob("*.safetensors")}
    plain = train(aligned(from_pretrained(folder)))
    switch_on()
    with file_backed():
        model = from_pretrained(folder)
    same_model(plain, train(model))
    assert before == {path: path.read_bytes() for path in folder.glob("*.safetensors")}


def fallen_back(folder: Path, reason: str, **more: Any) -> Any:
    with file_backed(), pytest.warns(tierpage.TierpageWarning, match=reason) as caught:
        model = from_pretrained(folder, **more)
    said = [one for one in caught if "transformers' own way" in str(one.message)]
    assert len(said) == 1
    assert said[0].filename == __file__
    return model


def test_other_files_are_left_to_transformers(switch_on: Callable[..., None], tmp_path: Path) -> None:
    plain = llama()
    (tmp_path / "model").mkdir()
    plain.config.save_pretrained(tmp_path / "model")
    torch.save(plain.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    switch_on()
    model = fallen_back(tmp_path / "model", r"'pytorch_model\.bin' is not a safetensors file")
    same(dict(plain.named_parameters()), dict(model.named_parameters()))


@pytest.mark.parametrize(
    ("paged", "device_map", "said"),
    [
        ("cpu", None, ""),
        ("cpu", {"": "cpu"}, ""),
        ("cpu", {"": torch.device("cpu"), "lm_head": "cpu"}, ""),
        ("cuda:0", {"": 0}, ""),
        ("cuda:0", {"": "cuda:0"}, ""),
        ("cuda:0", None, "the weights go to cpu, and tierpage pages cuda:0: give device_map='cuda:0'"),
        ("cuda:1", {"": torch.device("cuda:0"), "lm_head": "cpu"}, "the weights go to cpu and cuda:0, and"),
        ("cpu", {"": "cpu", "lm_head": "disk"}, "device_map offloads to the disk"),
    ],
)
def test_which_devices_are_left_to_transformers(paged: str, device_map: Any, said: str) -> None:
    found = loading._wrong_device(torch.device(paged), device_map)
    assert found.startswith(said) if said else found == ""


def test_files_that_are_read_whole_are_left_to_transformers(switch_on: Callable[..., None], folder: Path) -> None:
    if "disable_mmap" not in inspect.signature(transformers.PreTrainedModel.from_pretrained).parameters:
        pytest.skip(f"transformers {transformers.__version__} always maps files")
    plain = from_pretrained(folder)
    switch_on()
    model = fallen_back(folder, "took no tensor from the files", disable_mmap=True)
    same_model(plain, model)


def test_offload_is_left_to_transformers(switch_on: Callable[..., None], folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    switch_on()
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "disk" if layer == 2 else "cpu" for layer in range(3)}
    given = {"device_map": places, "offload_folder": str(tmp_path / "offload")}
    with pytest.warns(tierpage.TierpageWarning, match="is moved in and out by accelerate"):
        model = fallen_back(folder, "device_map offloads to the disk", **given)
    assert model.model.layers[2].mlp.up_proj.weight.is_meta


def test_a_state_dict_is_left_to_transformers(switch_on: Callable[..., None], folder: Path) -> None:
    plain = from_pretrained(folder)
    switch_on()
    with file_backed(), pytest.warns(tierpage.TierpageWarning, match="given as a state_dict"):
        model = transformers.LlamaForCausalLM.from_pretrained(None, config=plain.config, state_dict=plain.state_dict())
    same_model(plain, model)


@register_quantization_config("unchanged")
class UnchangedConfig(QuantizationConfigMixin):
    def __init__(self, **more: Any) -> None:
        self.quant_method = "unchanged"


@register_quantizer("unchanged")
class UnchangedQuantizer(HfQuantizer):
    """Stands for those that convert, and for checkpoints that are quantized already; changes nothing."""

    requires_calibration = False
    is_trainable = False

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: Any, **more: Any) -> Any:
        return model

    def _process_model_after_weight_loading(self, model: Any, **more: Any) -> Any:
        return model


def test_a_quantizer_that_converts_is_left_to_transformers(switch_on: Callable[..., None], folder: Path) -> None:
    plain = from_pretrained(folder)
    switch_on()
    model = fallen_back(
        folder, "UnchangedQuantizer converts the weights", quantization_config=UnchangedConfig(), dtype=torch.float32
    )
    same_model(plain, model)


def test_weights_that_are_quantized_already_stay_in_their_files(
    switch_on: Callable[..., None], folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    description = json.loads((folder / "config.json").read_text())
    description["quantization_config"] = {"quant_method": "unchanged"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(description))
    plain = from_pretrained(tmp_path / "model", dtype=torch.float32)
    switch_on()
    with file_backed():
        model = from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert model.hf_quantizer.pre_quantized
    assert read_count() == 0
    assert in_their_files(model)
    same_model(plain, model)


def test_tensor_parallel_loads_are_left_to_transformers(switch_on: Callable[..., None]) -> None:
    switch_on()
    given = {
        "checkpoint_files": ["model.safetensors"],
        "state_dict": None,
        "hf_quantizer": None,
        "device_mesh": object(),
    }
    assert "tensor parallelism" in loading._reason(tierpage.session.current(), given)


def test_a_file_that_is_not_understood_is_left_to_transformers(
    switch_on: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Any:
        raise CheckpointError(f"'{path}' has dtype 'F4'.\nRemedy: none")

    plain = from_pretrained(folder)
    switch_on()
    monkeypatch.setattr(files, "CheckpointFile", refuse)
    with file_backed(), pytest.warns(tierpage.TierpageWarning, match="has dtype 'F4'"):
        model = from_pretrained(folder)
    same_model(plain, model)


@pytest.mark.parametrize("what", ["method", "arguments", "open"])
def test_a_transformers_of_another_kind_is_said_and_left_alone(
    switch_on: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    plain = from_pretrained(folder)
    switch_on()
    owner = transformers.modeling_utils.PreTrainedModel
    original = owner.__dict__["_load_pretrained_model"]
    if what == "arguments":

        def other(*args: Any, **kwargs: Any) -> Any:
            return original.__func__(*args, **kwargs)

        monkeypatch.setattr(owner, "_load_pretrained_model", type(original)(other))
    elif what == "method":
        monkeypatch.setattr(owner, "_load_pretrained_model", original.__get__(None, owner))
    else:
        real = transformers.modeling_utils.safe_open
        monkeypatch.setattr(loading, "_OPEN", "opened_safely")
        monkeypatch.setattr(transformers.modeling_utils, "opened_safely", real, raising=False)
    wanted = "took no tensor from the files" if what == "open" else "another way to load weights than is known here"
    with pytest.warns(tierpage.TierpageWarning, match=wanted) as caught, file_backed():
        model = from_pretrained(folder)
    assert [one.filename for one in caught if one.category is tierpage.TierpageWarning] == [__file__]
    same_model(plain, model)


def test_disabled_meanwhile(switch_on: Callable[..., None], folder: Path) -> None:
    plain = from_pretrained(folder)
    switch_on()
    with file_backed():
        tierpage.disable()
        with pytest.warns(tierpage.TierpageWarning, match="tierpage is off"):
            model = from_pretrained(folder)
    same_model(plain, model)


def test_off_is_an_error() -> None:
    with pytest.raises(tierpage.TierpageError, match="not enabled"), file_backed():
        pass


def test_only_this_thread_and_only_inside_of_the_block(switch_on: Callable[..., None], folder: Path) -> None:
    owner, module = transformers.modeling_utils.PreTrainedModel, transformers.modeling_utils
    originals = owner.__dict__["_load_pretrained_model"], module.safe_open
    switch_on()
    made: list[Any] = []
    with file_backed():
        with file_backed():
            pass
        other = threading.Thread(target=lambda: made.append(from_pretrained(folder)))
        other.start()
        other.join()
        made.append(from_pretrained(folder))
    made.append(from_pretrained(folder))
    assert [in_their_files(model) for model in made] == [False, True, False]
    assert (owner.__dict__["_load_pretrained_model"], module.safe_open) == originals


def test_a_load_that_fails_leaves_nothing_behind(switch_on: Callable[..., None], folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    next((tmp_path / "model").glob("*.safetensors")).unlink()
    switch_on()
    with file_backed():
        with pytest.raises(OSError):
            from_pretrained(tmp_path / "model")
        assert in_their_files(from_pretrained(folder))


def test_what_is_taken_after_the_load_is_the_library_s_own(switch_on: Callable[..., None], folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    switch_on()
    with files.Load(tierpage.session.current()) as load:
        file = load.around(transformers.modeling_utils.safe_open(path, framework="pt"), path)
        name = next(iter(file.keys()))
        part = file.get_slice(name)
        inside = [part[...], file.get_tensor(name)]
    assert [tierpage.where(tensor).checkpoint > 0 for tensor in inside] == [True, True]
    outside = [part[...], part[:1], file.get_tensor(name)]
    assert torch.equal(outside[0], inside[0])
    assert torch.equal(outside[1], inside[1][:1])
    assert not any(tierpage.where(tensor).paged for tensor in outside)
    with pytest.raises(Exception, match="missing"):
        file.get_slice("missing")
