"""``compress``: pages are coded in the lower tiers and come back bit for bit; what it saved is told; why it is off, too."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import harness
import tierpage
from tierpage import page_code

CUDA = harness.DEVICE != "cpu"
MIB = harness.MIB
FRAME = (2 if CUDA else 1) * MIB
needs_no_gpu = pytest.mark.skipif(CUDA, reason="of a device that is RAM")


@pytest.fixture
def coding(options: dict[str, Any]) -> dict[str, Any]:
    """Settings under which most of some ten MiB has to move, coded."""
    budget = 64 * MIB if CUDA else 24 * MIB
    return {**options, "compress": "on", "device_budget": budget, "host_budget": 2048 * MIB, "frame_bytes_max": FRAME}


def contents(device: str, count: int = 2 * MIB + 1000) -> dict[str, torch.Tensor]:
    """What programs keep, and what is odd about floating point numbers."""
    generator = torch.Generator(device).manual_seed(4)
    made = {
        f"normal {dtype}": (torch.randn(count, generator=generator, device=device) * 0.02).to(dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    }
    every = torch.arange(65536, device=device, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        made[f"every {dtype}"] = every.repeat(count // 65536).view(dtype)
    payloads = torch.randint(0x7F800001, 0x7FFFFFFF, (count,), generator=generator, device=device, dtype=torch.int32)
    made["payloads of NaN"] = payloads.view(torch.float32)
    made["noise"] = torch.randint(0, 256, (4 * count,), generator=generator, device=device, dtype=torch.uint8)
    made["zeros"] = torch.zeros(count, device=device)
    made["denormals"] = torch.full((count,), -1e-40, device=device)
    return made


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8).cpu().clone()


def check_bits(settings: dict[str, Any], device: str) -> dict[str, Any]:
    expected = {name: bits(tensor) for name, tensor in contents(device).items()}
    with tierpage.enable(**settings):
        made = contents(device)
        for _ in range(2):
            for name, tensor in made.items():
                assert torch.equal(bits(tensor), expected[name]), name
            tierpage.evict(list(made.values()))
        stats = dict(tierpage.memory_stats())
        del made, tensor
    return stats


def test_every_content_comes_back_bit_for_bit(coding: dict[str, Any], device: str) -> None:
    stats = check_bits(coding, device)
    assert stats["code_pages.decode"] > 10
    assert stats["coded_bytes.encode"] < stats["content_bytes.encode"]
    # A page that was freed on its way down was coded and saved nothing.
    assert 0 < stats["saved_bytes.down"] <= stats["content_bytes.encode"] - stats["coded_bytes.encode"]
    assert stats["saved_bytes.up"] > 0


def test_each_code_is_compared_under_paranoid(coding: dict[str, Any], device: str) -> None:
    assert check_bits({**coding, "paranoid": True}, device)["code_pages.encode"] > 10


@pytest.mark.parametrize("verify", ["read", "full"])
def test_codes_go_on_to_the_disk(coding: dict[str, Any], device: str, tmp_path: Path, verify: str) -> None:
    tiers = {"nvme_path": str(tmp_path), "nvme_budget": 512 * MIB, "host_budget": 48 * MIB, "verify": verify}
    stats = check_bits({**coding, **tiers, "staging_slot_bytes": MIB, "encrypt": verify == "full"}, device)
    assert stats["writeback_bytes.host_to_nvme"] + stats["writeback_bytes.device_to_nvme"] > 0
    assert stats["fetch_bytes.nvme_to_device"] + stats["fetch_bytes.nvme_to_host"] > 0


def test_ram_holds_more(coding: dict[str, Any], device: str) -> None:
    """Weights of 16 bits for which plain copies would need a third more RAM than there is."""
    count, each = 64, 2 * MIB
    with tierpage.enable(**{**coding, "host_budget": coding["device_budget"] + count * each * 3 // 4}):
        generator = torch.Generator(device).manual_seed(1)
        weights = [
            torch.randn(each // 2, generator=generator, device=device).mul_(0.02).bfloat16() for _ in range(count)
        ]
        sums = [weight.float().sum().item() for weight in weights]
        tierpage.evict(weights)
        stats = tierpage.memory_stats()
        content = sum(weight.numel() * 2 for weight in weights)
        assert stats["resident_bytes.host.current"] < content / 1.3
        assert sums == [weight.float().sum().item() for weight in weights]
        del weights


def test_training_has_the_bits_of_a_plain_run(coding: dict[str, Any], device: str) -> None:
    def run() -> list[torch.Tensor]:
        torch.manual_seed(2)
        model = torch.nn.Sequential(*(torch.nn.Linear(768, 768) for _ in range(16))).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        data = torch.randn(32, 768, generator=torch.Generator(device).manual_seed(3), device=device)
        for _ in range(3):
            optimizer.zero_grad()
            model(data).square().mean().backward()
            optimizer.step()
        return [bits(parameter.detach()) for parameter in model.parameters()]

    expected = run()
    with tierpage.enable(**coding):
        found = run()
        assert tierpage.memory_stats()["code_pages.decode"] > 0
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_checkpoint_is_written_from_codes(coding: dict[str, Any], device: str, tmp_path: Path) -> None:
    with tierpage.enable(**coding):
        state = {name: tensor for name, tensor in contents(device).items() if tensor.dtype != torch.float64}
        expected = {name: bits(tensor) for name, tensor in state.items()}
        tierpage.evict(list(state.values()))
        tierpage.save(state, tmp_path / "state.safetensors")
        del state
    loaded = load_file(tmp_path / "state.safetensors")
    assert all(torch.equal(bits(loaded[name]), expected[name]) for name in expected)


def test_what_it_saved_is_told(coding: dict[str, Any], device: str) -> None:
    with tierpage.enable(**coding):
        assert tierpage.config().in_force["compress"] is True
        weights = [torch.randn(MIB, device=device) for _ in range(12)]
        tierpage.evict(weights)
        assert sum(weight.sum().item() for weight in weights) is not None
        summary = tierpage.memory_summary()
        assert "did not have to come up" in summary
        del weights


def test_ratios_by_type_by_tier_and_by_tag_are_told(coding: dict[str, Any], device: str) -> None:
    with tierpage.enable(**coding):
        with tierpage.paged("weights"):
            weights = (torch.randn(8 * MIB, device=device) * 0.02).bfloat16()
        with tierpage.paged("tokens"):
            tokens = torch.randint(0, 256, (8 * MIB,), dtype=torch.uint8, device=device)
        tierpage.evict([weights, tokens])
        stats = tierpage.memory_stats()
        held, pages = (stats[f"{name}_bytes.host.current"] for name in ("compressed", "uncompressed"))
        assert 0.65 * pages < held < 0.75 * pages
        assert held <= stats["resident_bytes.host.current"]
        ratios = {
            name: stats[f"stored_bytes.tag.{name}.current"] / stats[f"content_bytes.tag.{name}.current"]
            for name in ("weights", "tokens")
        }
        assert 0.65 < ratios["weights"] < 0.75
        assert ratios["tokens"] == 1
        whole = {name: stats[f"content_bytes.encode.{name}"] for name in ("bfloat16", "float16", "float32", "other")}
        assert sum(whole.values()) == stats["content_bytes.encode"]
        assert stats["coded_bytes.encode.bfloat16"] < 0.75 * whole["bfloat16"]
        assert stats["coded_bytes.encode.other"] == whole["other"] >= tokens.numel()
        summary = tierpage.memory_summary()
        assert "bfloat16, coded" in summary
        assert "tag weights, below" in summary
        tierpage.reset_accumulated_memory_stats()
        stats = tierpage.memory_stats()
        assert stats["content_bytes.encode.bfloat16"] == 0
        assert stats["compressed_bytes.host.current"] == held
        del weights, tokens


@needs_no_gpu
def test_auto_is_off_where_copies_are_faster_than_codes(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**options):
        assert tierpage.config().compress == "auto"
        in_force = tierpage.config().in_force
        assert in_force["compress"] is False
        assert "processor" in in_force["compress_notice"]
        weights = [torch.randn(MIB, device=device) for _ in range(12)]
        tierpage.evict(weights)
        assert tierpage.memory_stats()["code_pages.encode"] == 0
        assert "did not have to" not in tierpage.memory_summary()
        del weights


def test_on_without_room_for_its_ring_is_an_error_that_says_so(coding: dict[str, Any]) -> None:
    with pytest.raises(tierpage.ConfigError, match=r'compress="on" cannot be.*device_budget'):
        tierpage.enable(**{**coding, "device_budget": 2 * FRAME})
    with tierpage.enable(**{**coding, "compress": "off"}):
        assert tierpage.config().in_force["compress"] is False


# ---- the compiled kernels and where they are kept


class StandInCompiler:
    version = (13, 0)
    compiled = 0

    def __init__(self, library: object) -> None:
        pass

    def target(self, capability: int) -> str:
        return f"sm_{capability}"

    def compile(self, text: bytes, headers: dict[str, bytes], target: str) -> bytes:
        assert b"page_encode.cu" in text
        assert set(headers) == {f"codec/page_{name}" for name in ("layout.cuh", "decode.cu", "encode.cu")}
        StandInCompiler.compiled += 1
        return b"kernels of " + target.encode()


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(page_code, "_library", lambda: None)
    monkeypatch.setattr(page_code, "_Compiler", StandInCompiler)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, index))
    StandInCompiler.compiled = 0
    return tmp_path


def test_kernels_are_compiled_once_for_each_kind_of_device(home: Path) -> None:
    assert [page_code.compiled(index) for index in (0, 0, 1, 0)] == [
        b"kernels of sm_90", b"kernels of sm_90", b"kernels of sm_91", b"kernels of sm_90",
    ]  # fmt: skip
    assert StandInCompiler.compiled == 2
    folder = home / "tierpage"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.iterdir())) == 2, "nothing half written is left"


def test_what_others_may_have_put_into_the_cache_is_not_used(home: Path, tmp_path: Path) -> None:
    page_code.compiled(0)
    (kept,) = (home / "tierpage").iterdir()
    whole = kept.read_bytes()
    for damaged in (b"", whole[:-1], b"x" + whole[1:], whole + b"y"):
        kept.write_bytes(damaged)
        assert page_code.compiled(0) == b"kernels of sm_90"
        assert kept.read_bytes() == whole, "and it is mended"
    assert StandInCompiler.compiled == 5
    other = tmp_path / "other"
    other.write_bytes(whole)
    kept.unlink()
    kept.symlink_to(other)
    page_code.compiled(0)
    assert StandInCompiler.compiled == 6, "a link may lead anywhere"
    (home / "tierpage").chmod(0o777)
    page_code.compiled(0)
    assert StandInCompiler.compiled == 7, "anybody may write there"


def test_without_a_cache_it_is_compiled_each_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    assert page_code.compiled(0) == page_code.compiled(0) == b"kernels of sm_90"
    assert StandInCompiler.compiled == 2


def test_a_missing_compiler_is_a_reason_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(page_code, "_candidates", lambda: iter(["libnvrtc.so.of.nobody"]))
    made = type("Settings", (), {"compress": "auto", "device": "cuda", "device_index": 0})()
    told = page_code.engine_options(made)  # type: ignore[arg-type]
    assert told["code_kernels"] == b""
    assert "NVRTC" in str(told["code_refusal"])
    made.compress = "off"
    assert page_code.engine_options(made) == {"code_kernels": b"", "code_refusal": ""}  # type: ignore[arg-type]


def test_the_package_carries_the_text() -> None:
    for name in ("page_code.cu", "page_layout.cuh", "page_decode.cu", "page_encode.cu"):
        assert os.path.getsize(page_code._FOLDER / name) > 100
