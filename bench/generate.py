"""Generation beyond the device budget with a model of transformers, beside its bound and beside the same model in VRAM.

    python bench/generate.py --shape 13b --device-budget 16GiB
    python bench/generate.py --shape 32b --quantize nf4 --device-budget 8GiB --cache static --prompt 2000

Random weights, made on the device layer by layer, greedy choice. Prints one JSON line: median seconds of a token after
warm-up, the bound (the longer of the plain run and of the bytes that must cross the link / its measured rate), bytes
moved, idle shares, processor seconds, and whether all logits equal the plain run's bit for bit. Needs transformers, and
bitsandbytes for ``--quantize``.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from machine import (
    Look,
    add_cores,
    best_links,
    hold_cores,
    look,
    process_device_bytes,
    provenance,
    synchronize,
    usage,
    version_of,
)

# hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, vocab_size
SHAPES = {
    "tiny": (256, 688, 4, 4, 2, 1024),
    "small": (1024, 2816, 8, 8, 4, 4096),
    "13b": (5120, 13824, 40, 40, 40, 32000),
    "32b": (6656, 17920, 60, 52, 52, 32000),
    "70b": (8192, 28672, 80, 64, 8, 32000),
}
WEIGHT_DEVIATION = 0.02
REFUSED = 3  # exit code: the budget was too small


def config_of(name: str, positions: int) -> Any:
    """transformers' LlamaConfig of the shape."""
    from transformers import LlamaConfig

    hidden, intermediate, layers, heads, key_value_heads, vocabulary = SHAPES[name]
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_value_heads, vocab_size=vocabulary, max_position_embeddings=positions,
        dtype=torch.bfloat16,
    )  # fmt: skip


def quantized(linear: nn.Linear, kind: str, weight: torch.Tensor) -> nn.Module:
    """A layer of bitsandbytes in place of the linear one, with this weight."""
    import bitsandbytes

    if kind == "nf4":
        layer = bitsandbytes.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4",
            device="meta",
        )  # fmt: skip
        layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
    else:
        layer = bitsandbytes.nn.Linear8bitLt(
            linear.in_features, linear.out_features, bias=False, has_fp16_weights=False, device="meta"
        )
        layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    layer.weight = layer.weight.to(weight.device)
    return layer


def build(args: argparse.Namespace, device: str) -> Any:
    """The model, each weight made on the device when its turn comes, the same in every run."""
    from transformers import LlamaForCausalLM

    config = config_of(args.shape, args.prompt + args.new_tokens + 8)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    torch.manual_seed(0)
    for name, module in list(model.named_modules()):
        own = list(module.named_parameters(recurse=False))
        for key, parameter in own:
            value = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            value = value.fill_(1) if parameter.dim() == 1 else value.normal_(std=WEIGHT_DEVIATION)
            if args.quantize and isinstance(module, nn.Linear) and name != "lm_head":
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, quantized(module, args.quantize, value))
            else:
                setattr(module, key, nn.Parameter(value, requires_grad=False))
    with torch.device(device):  # its buffers are computed, not stored
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    return model


def weight_bytes(model: nn.Module) -> int:
    """Of parameters and buffers, and of what bitsandbytes keeps beside them."""
    tensors = {t.data_ptr(): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        for value in vars(state).values() if state is not None else ():
            if isinstance(value, torch.Tensor):
                tensors[value.data_ptr()] = value.numel() * value.element_size()
    return sum(tensors.values())


class Clock:
    """transformers' streamer: is handed each token when it is there, and notes the time."""

    def __init__(self, warmup: int, after_warmup: Callable[[], None]) -> None:
        self.times: list[float] = []
        self._warmup, self._after_warmup = warmup, after_warmup

    def put(self, value: torch.Tensor) -> None:
        """Of the prompt first, then of each token. The copy that transformers makes has waited for the device."""
        self.times.append(time.perf_counter())
        if len(self.times) == self._warmup + 2:
            self._after_warmup()

    def end(self) -> None:
        """The last token has come."""


def generate(model: Any, args: argparse.Namespace, device: str, after_warmup: Callable[[], None]) -> dict[str, Any]:
    """Seconds of each token, of the prompt, and a digest of all logits and tokens."""
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(3, model.config.vocab_size, (args.batch, args.prompt), generator=generator).to(device)
    clock = Clock(args.warmup, after_warmup)
    synchronize(device)
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=args.new_tokens,
            min_new_tokens=args.new_tokens, pad_token_id=0, streamer=clock, output_logits=True,
            return_dict_in_generate=True, cache_implementation="static" if args.cache == "static" else None,
            disable_compile=True,
        )  # fmt: skip
    digest = hashlib.sha256(out.sequences.cpu().numpy().tobytes())
    for logits in out.logits:
        digest.update(logits.float().cpu().numpy().tobytes())
    tokens = [after - before for before, after in zip(clock.times[1:], clock.times[2:], strict=False)]
    return {
        "seconds": statistics.median(tokens[args.warmup :]), "times": [round(t, 4) for t in tokens],
        "prompt_seconds": round(clock.times[1] - start, 4), "digest": digest.hexdigest()[:16],
    }  # fmt: skip


def measure(args: argparse.Namespace, after_warmup: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Builds the model and lets it generate once."""
    model = build(args, args.device)
    synchronize(args.device)
    weights = weight_bytes(model)
    out = generate(model, args, args.device, after_warmup)
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else weights
    del model
    gc.collect()
    return {**out, "weight_bytes": weights, "allocated_bytes_max": peak}


def plain_side(args: argparse.Namespace) -> dict[str, Any]:
    """Without paging."""
    plain = measure(args)
    if args.device == "cuda":
        torch.cuda.empty_cache()
    return plain


def paged_row(args: argparse.Namespace, plain: dict[str, Any] | None, rate: float) -> dict[str, Any]:
    """Generates under tierpage and puts the figures beside their bound."""
    import tierpage

    context = process_device_bytes() if args.device == "cuda" else 0
    tierpage.enable(
        nvme_path=args.nvme_path, device=args.device, device_budget=args.device_budget, host_budget=args.host_budget
    )
    looks: list[Look] = []
    paged = measure(args, lambda: looks.append(look()))
    looks.append(look())
    if args.trace:
        tierpage.export_trace(args.trace)
    before, after = (one.stats for one in looks)
    budget = tierpage.config().device_budget
    weights = paged["weight_bytes"]
    # Beside the weights: the cache, and what operators read and make.
    working_set = max(plain["allocated_bytes_max"] - weights, 0) if plain else 0
    link_bound = max(weights + working_set - budget, 0) / (rate * 1e9) if rate else 0.0
    bound = max(link_bound, plain["seconds"] if plain else 0.0)
    counted = max(1, args.new_tokens - 1 - args.warmup)
    moved = {k: after[k] - before[k] for k in after if k.startswith(("fetch_bytes", "writeback_bytes"))}
    return {
        "bench": "generate", "shape": args.shape, "quantize": args.quantize, "cache": args.cache, "batch": args.batch,
        "prompt": args.prompt, "new_tokens": args.new_tokens, "device": args.device, "device_budget_bytes": budget,
        "weight_bytes": weights, "working_set_bytes": working_set, "link_gb_per_s": round(rate, 2),
        "seconds": round(paged["seconds"], 4), "bound_seconds": round(bound, 4),
        "ratio_to_bound": round(paged["seconds"] / bound, 3) if bound else None,
        "tokens_per_second": round(args.batch / paged["seconds"], 2),
        "plain_seconds": round(plain["seconds"], 4) if plain else None,
        "bits_equal": plain["digest"] == paged["digest"] if plain else None,
        "prompt_seconds": paged["prompt_seconds"], "plain_prompt_seconds": plain["prompt_seconds"] if plain else None,
        "times": paged["times"], "bytes_per_token": {k: int(v / counted) for k, v in moved.items() if v},
        "stall_seconds": {k: round(after[k] - before[k], 3) for k in after if k.startswith("stall_seconds.") and "max" not in k},
        "faults": after["faults.count"] - before["faults.count"], **usage(*looks),
        "driver_bytes_above_context": process_device_bytes() - context if args.device == "cuda" else 0,
        "transformers_version": version_of("transformers"), **provenance(args.device),
    }  # fmt: skip


def main() -> int:
    """Runs both sides; exit code 1 where the bits differ, 3 where the budget was too small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny", choices=sorted(SHAPES))
    parser.add_argument("--quantize", default=None, choices=("nf4", "int8"), help="all linear layers but the head")
    parser.add_argument("--cache", default="dynamic", choices=("dynamic", "static"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each sequence (default: 32)")
    parser.add_argument("--new-tokens", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=12, help="new tokens that do not count (default: 12)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--device-budget", default="4MiB")
    parser.add_argument("--host-budget", default=None)
    parser.add_argument("--nvme-path", default=None)
    parser.add_argument("--link-gb-per-s", type=float, default=None, help="host to device; default: measured")
    parser.add_argument("--no-plain", action="store_true", help="skip the all-in-VRAM side")
    parser.add_argument("--trace", default=None, help="write a Perfetto timeline here")
    add_cores(parser)
    args = parser.parse_args()
    if args.new_tokens < args.warmup + 3 or args.prompt < 1 or args.batch < 1:
        parser.error("give at least one prompt token, and three new tokens more than those that do not count")
    hold_cores(args.cores)
    from tierpage import _C, ConfigError

    plain = None if args.no_plain else plain_side(args)
    rate = args.link_gb_per_s or best_links(_C, args.device).get("host_to_device", 0.0)
    try:
        row = paged_row(args, plain, rate)
    except (torch.OutOfMemoryError, ConfigError) as error:
        print(json.dumps({"bench": "generate", "error": f"{type(error).__name__}: {error}", **provenance(args.device)}))
        return REFUSED
    print(json.dumps(row))
    return 0 if row["bits_equal"] in (True, None) else 1


if __name__ == "__main__":
    sys.exit(main())
