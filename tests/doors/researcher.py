"""Researcher: a step under torch.profiler, and what tierpage moved on the same time line."""

import json

import torch
import yours
from torch.profiler import ProfilerActivity, profile

import tierpage

tierpage.enable(nvme_path=yours.FOLDER, **yours.budgets())
device = tierpage.config().device
width = 4096 if device == "cuda" else 512
with torch.device(device):
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(20)))
    x = torch.randn(8, width)
kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
with profile(activities=kinds) as profiler:
    for _ in range(2):
        model(x).sum().backward()
        tierpage.step()
profiler.export_chrome_trace(str(yours.FOLDER / "torch.json"))
tierpage.export_trace(yours.FOLDER / "both.json", merge_with=yours.FOLDER / "torch.json")
events = json.loads((yours.FOLDER / "both.json").read_text())["traceEvents"]
operators = sum(str(event.get("name", "")).startswith("aten::") for event in events)
yours.first_result(f"a trace with {operators} operators among {len(events)} events")

assert 0 < operators < len(events)
print(tierpage.memory_summary())
yours.has_moved()
