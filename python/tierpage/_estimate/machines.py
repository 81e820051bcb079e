"""Rates of machines: a table of GPUs by their makers' figures, and this machine by measurement.

What kernels and links reach of a maker's figure was measured on one H200 (docs/benchmarks.md): 727 of 989.4 TFLOP/s in
a forward pass of 2048 tokens and 633 in training, whose backward attention is slower; 3.6 of 4.8 TB/s of memory; 55.2
of 63.0 GB/s up and 55.0 down, 0.86 of each with both directions busy; pages of bfloat16 are coded at 550 GB/s and
decoded at 1970, 0.153 and 0.547 of what its memory reaches. Other GPUs are taken to reach the same shares.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from tierpage import native
from tierpage._estimate.errors import EstimateError
from tierpage._estimate.recording import ComputeRates
from tierpage.defaults import ThisMachine, check_directory

__all__ = ["MACHINES", "Drive", "Machine", "named", "this_machine"]

GB = 1e9
FORWARD_SHARE, TRAINING_SHARE, MEMORY_SHARE = 0.735, 0.64, 0.75
UP_SHARE, DOWN_SHARE, DUPLEX_FACTOR = 0.876, 0.873, 0.86
ENCODE_SHARE, DECODE_SHARE = 0.153, 0.547
# Lanes x transfers a second x 128/130 of coding / 8 bits, one direction (PCI Express base specifications 4.0 and 5.0).
PCIE4, PCIE5 = 16 * 16 * 128 / 130 / 8 * GB, 16 * 32 * 128 / 130 / 8 * GB
DEVICE_MARGIN = 20  # enable() leaves a twentieth of VRAM free, at least 512 MiB


@dataclass(frozen=True)
class Drive:
    """Bytes a second of the disk tier."""

    read: float
    write: float


@dataclass(frozen=True)
class Machine:
    """A GPU and its links. Flops and bytes a second are peaks; the shares say what programs reach of them."""

    name: str
    device_bytes: int
    half_flops: float  # bfloat16 with float32 sums, dense
    single_flops: float  # float32 without TF32, torch's default for matrix products
    memory_rate: float
    up_rate: float
    down_rate: float
    forward_share: float = FORWARD_SHARE
    training_share: float = TRAINING_SHARE
    memory_share: float = MEMORY_SHARE
    drive: Drive | None = None

    def compute(self, training: bool) -> ComputeRates:
        """What kernels reach."""
        share = self.training_share if training else self.forward_share
        return ComputeRates(self.half_flops * share, self.single_flops * share, self.memory_rate * self.memory_share)

    def link_rates(self, drive: Drive | None) -> dict[str, float]:
        """For the replay: bytes a second."""
        rates = {"host_to_device": self.up_rate, "device_to_host": self.down_rate, "duplex_factor": DUPLEX_FACTOR}
        if drive is not None:
            rates |= {"disk_read": drive.read, "disk_write": drive.write}
        return rates

    def code_rates(self, ratio: float) -> dict[str, float]:
        """For the replay, of pages whose codes take ``ratio`` of their bytes: bytes of content a second."""
        reached = self.memory_rate * self.memory_share
        return {"code_ratio": ratio, "encode": reached * ENCODE_SHARE, "decode": reached * DECODE_SHARE}

    def with_links(self, up: float | None, down: float | None) -> Machine:
        """The same GPU with other links, in bytes a second."""
        return replace(self, up_rate=up or self.up_rate, down_rate=down or self.down_rate)

    def device_budget(self) -> int:
        """What enable() would take of an idle GPU."""
        return self.device_bytes - max(512 << 20, self.device_bytes // DEVICE_MARGIN)


def _gpu(name: str, gib: float, half: float, single: float, memory_gb: float, pcie: float) -> Machine:
    return Machine(
        name, int(gib * 2**30), half * 1e12, single * 1e12, memory_gb * GB, pcie * UP_SHARE, pcie * DOWN_SHARE
    )


# Dense TFLOP/s of bfloat16 with float32 sums, of float32, GB/s of memory, PCIe x16. GiB are what the driver reports.
MACHINES: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        # NVIDIA Ampere GA102 whitepaper, appendix A.
        _gpu("rtx3090", 23.7, 71.2, 35.6, 936, PCIE4),
        # NVIDIA Ada GPU architecture whitepaper, appendix A.
        _gpu("rtx4090", 23.6, 165.2, 82.6, 1008, PCIE4),
        # NVIDIA RTX Blackwell GPU architecture whitepaper, appendix A.
        _gpu("rtx5090", 31.3, 209.5, 104.8, 1792, PCIE5),
        # NVIDIA L40S data sheet.
        _gpu("l40s", 44.4, 362.05, 91.6, 864, PCIE4),
        # NVIDIA A100 80GB data sheet, SXM.
        _gpu("a100", 79.2, 312, 19.5, 2039, PCIE4),
        # NVIDIA H100 data sheet, SXM; the figures there with sparsity are twice these.
        _gpu("h100", 79.1, 989.4, 67, 3350, PCIE5),
        # NVIDIA H200 data sheet, SXM.
        _gpu("h200", 139.8, 989.4, 67, 4800, PCIE5),
    )
}


def named(name: str) -> Machine:
    """The machine of that name. Raises EstimateError that lists the names."""
    if name not in MACHINES:
        raise EstimateError(f"there is no machine {name!r}: give one of {', '.join(MACHINES)}, or this.")
    return MACHINES[name]


def this_machine(paths: list[str]) -> Machine:
    """This machine, its links and its kernels measured in a few seconds; ``paths`` are directories on its drives.

    Raises EstimateError without a CUDA device, ConfigError for a directory that no spill file can be made in.
    """
    if not torch.cuda.is_available():
        raise EstimateError(
            f"there is no CUDA device here to measure: name the machine, --machine {'|'.join(MACHINES)}."
        )
    for path in paths:
        check_directory(path, ThisMachine())
    with native.translated():
        links = dict(native.engine_module().measure_links("cuda", torch.cuda.current_device(), paths))
    if not links.get("host_to_device") or not links.get("device_to_host"):
        raise EstimateError("the links cannot be measured: run `tierpage doctor`, it names what is missing.")
    drive = None
    if paths:
        if not links.get("disk_read") or not links.get("disk_write"):
            raise EstimateError(f"the drive cannot be measured: {links.get('disk_error', 'it refused a transfer')}")
        drive = Drive(links["disk_read"] * GB, links["disk_write"] * GB)
    return Machine(
        torch.cuda.get_device_name(),
        torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory,
        _matmul_rate(torch.bfloat16),
        _matmul_rate(torch.float32),
        _memory_rate(),
        links["host_to_device"] * GB,
        links["device_to_host"] * GB,
        # What is measured is what is reached, but for attention: the shares are those of the H200 relative to its best.
        forward_share=1.0,
        training_share=TRAINING_SHARE / FORWARD_SHARE,
        memory_share=1.0,
        drive=drive,
    )


def _best_seconds(work: Any) -> float:
    best = float("inf")
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        work()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3)
    return best


def _matmul_rate(dtype: torch.dtype) -> float:
    size = 4096
    left, right = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return float(2 * size**3 / _best_seconds(lambda: torch.mm(left, right)))


def _memory_rate() -> float:
    source = torch.ones(64 * 2**20, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source))
