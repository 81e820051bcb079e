"""Inference with a timeline: writes trace.json, which Perfetto opens, beside torch.profiler's events."""

import tempfile
from pathlib import Path

import torch

import tierpage


def main() -> None:
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as folder,
        tierpage.enable(folder, device="cpu", device_budget="32MiB", host_budget="64MiB", nvme_budget="256MiB"),
    ):
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True, dropout=0.0)
        model = torch.nn.TransformerEncoder(layer, 8, enable_nested_tensor=False).eval()
        profile = Path(folder) / "profile.json"
        with torch.inference_mode(), torch.profiler.profile() as profiler:
            for _ in range(3):
                output = model(torch.randn(4, 64, 512))
        profiler.export_chrome_trace(str(profile))
        tierpage.export_trace("trace.json", merge_with=profile)
        stats = tierpage.memory_stats()
        print(
            f"output {tuple(output.shape)}, host to device {stats['fetch_bytes.host_to_device'] / 1e6:.1f} MB, trace.json written"
        )
        del model, layer, output


if __name__ == "__main__":
    main()
