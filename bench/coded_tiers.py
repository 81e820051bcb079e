"""What codes save of the disk where RAM holds half of the weights: bytes that one pass reads, with and without.

    python bench/coded_tiers.py [--nvme-path DIR] [--weights 128]

Matrices of 4 MiB in bf16 on the host device, of which device memory holds an eighth and RAM a half; the rest lies on the
disk. Prints a JSON line for compress="off" and one for "on", each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch

MIB = 2**20
EACH = 4 * MIB


def measure(compress: str, nvme_path: str, count: int) -> None:
    import tierpage

    tierpage.enable(
        nvme_path, device="cpu", device_budget=count * EACH // 8, host_budget=count * EACH // 2 + 16 * MIB,
        nvme_budget=2 * count * EACH, compress=compress, staging_slot_bytes=MIB,
    )  # fmt: skip
    torch.manual_seed(0)
    weights = [(torch.randn(EACH // 2048, 1024) * 0.02).bfloat16() for _ in range(count)]

    def passes(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            for weight in weights:
                weight[:8].float().sum()
        return (time.perf_counter() - start) / times

    passes(4)
    before = tierpage.memory_stats()
    seconds = passes(4)
    after = tierpage.memory_stats()
    names = ("fetch_bytes.host_to_device", "fetch_bytes.nvme_to_device", "fetch_bytes.nvme_to_host")
    row = {name: (after[name] - before[name]) // 4 for name in names}
    held = {tier: after[f"resident_bytes.{tier}.current"] for tier in ("device", "host", "nvme")}
    print(
        json.dumps(
            {"compress": compress, "weight_bytes": count * EACH, "seconds": round(seconds, 4), **row, "in_use": held}
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvme-path", default="/var/tmp")
    parser.add_argument("--weights", type=int, default=128)
    parser.add_argument("--compress", choices=("off", "on"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compress:
        measure(arguments.compress, arguments.nvme_path, arguments.weights)
        return
    for compress in ("off", "on"):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--compress", compress], check=True)


if __name__ == "__main__":
    main()
