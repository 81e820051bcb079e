"""What coded pages cost and save on a GPU: ratios, rates of the kernels alone and beside other work, and whether all
encoders and decoders agree. docs/page-format.md has the format.

    python bench/codec_bench.py                      all sections, one JSON line a row, about a minute
    python bench/codec_bench.py --only alone,shares  some of them
    python bench/codec_bench.py --smoke              tiny, to see that it runs

Needs torch with CUDA and cupy, whose NVRTC compiles the kernels; g++ for the CPU codec. Rates are GB/s (1e9 bytes) of
bytes that are not coded. A section that fails prints its error and the next one begins.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

CSRC = Path(__file__).resolve().parent.parent / "csrc"
MIB = 2**20
PLAN_WORDS = 8  # type, code_bits, escape_count, coded_bytes, dictionary
TYPES = ("plain", "bf16", "fp16", "fp32")
REPEATS = 7
WRAPPER = """
#include "codec/page_codec.h"
using namespace tierpage;
static std::span<std::byte> span_of(void* data, size_t bytes) { return {static_cast<std::byte*>(data), bytes}; }
extern "C" size_t codec_encode(void* page, size_t bytes, void* out, size_t room) {
  return encode_page(span_of(page, bytes), span_of(out, room));
}
extern "C" int codec_decode(void* coded, size_t coded_bytes, void* page, size_t bytes) {
  return decode_page(span_of(coded, coded_bytes), span_of(page, bytes)).ok() ? 0 : 1;
}
extern "C" double codec_estimate(void* page, size_t bytes) { return estimate_ratio(span_of(page, bytes)); }
"""


def row(section: str, **values: Any) -> None:
    shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
    print(json.dumps({"bench": "codec", "section": section, **shown}), flush=True)


# ---- kernels


class Kernels:
    """The kernels, compiled; launches go to the current stream of torch."""

    def __init__(self, ahead: int = 1) -> None:
        import cupy

        self._cupy = cupy
        names = {
            "page_decode.cu": ("tierpage_decode",),
            "page_encode.cu": ("tierpage_choose", "tierpage_write_planes", "tierpage_place", "tierpage_write_escapes"),
        }
        self.functions: dict[str, Any] = {}
        for file, kernels in names.items():
            text = (CSRC / "codec" / file).read_text()
            options = ("-std=c++17", f"-I{CSRC}", f"-DTIERPAGE_CODEC_AHEAD={ahead}")
            module = cupy.RawModule(code=text, options=options, backend="nvrtc")
            self.functions.update({name: module.get_function(name) for name in kernels})

    def registers(self) -> dict[str, int]:
        return {name: int(function.num_regs) for name, function in self.functions.items()}

    def _launch(self, name: str, blocks: int, threads: int, *arguments: Any) -> None:
        with self._cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            self.functions[name]((blocks,), (threads,), arguments)

    def encode(self, page: torch.Tensor, coded: torch.Tensor, plan: torch.Tensor, blocks: int, threads: int) -> None:
        at, room = (np.uint64(page.data_ptr()), np.uint64(page.numel())), np.uint64(coded.numel())
        code, plan_at = np.uint64(coded.data_ptr()), np.uint64(plan.data_ptr())
        self._launch("tierpage_choose", 1, 1024, *at, room, np.uint32(0), plan_at)
        self._launch("tierpage_write_planes", blocks, threads, *at, code, plan_at)
        self._launch("tierpage_place", 1, 1024, *at, code, room, plan_at)
        self._launch("tierpage_write_escapes", blocks, threads, *at, code, plan_at)

    def decode(
        self,
        coded: torch.Tensor,
        coded_bytes: int,
        page: torch.Tensor,
        damaged: torch.Tensor,
        blocks: int,
        threads: int,
    ) -> None:
        pointers = [np.uint64(tensor.data_ptr()) for tensor in (coded, page, damaged)]
        sizes = np.uint64(coded_bytes), np.uint64(page.numel())
        self._launch("tierpage_decode", blocks, threads, pointers[0], sizes[0], pointers[1], sizes[1], pointers[2])


class Pages:
    """Some pages of one content, room for their codes and for what comes back."""

    def __init__(self, content: torch.Tensor, page_bytes: int) -> None:
        flat = content.contiguous().view(torch.uint8).flatten()
        self.count, self.page_bytes = flat.numel() // page_bytes, page_bytes
        self.page = flat[: self.count * page_bytes].view(self.count, page_bytes)
        self.coded = torch.zeros_like(self.page)
        self.back = torch.zeros_like(self.page)
        self.plan = torch.zeros(self.count, PLAN_WORDS, dtype=torch.int32, device="cuda")
        self.damaged = torch.zeros(self.count, dtype=torch.int32, device="cuda")
        self.sizes: list[int] = []

    @property
    def bytes(self) -> int:
        return self.count * self.page_bytes

    def encode(self, kernels: Kernels, blocks: int = 528, threads: int = 256) -> None:
        for i in range(self.count):
            kernels.encode(self.page[i], self.coded[i], self.plan[i], blocks, threads)

    def read_sizes(self) -> list[int]:
        torch.cuda.synchronize()
        self.sizes = [int(words[3]) for words in self.plan.tolist()]
        return self.sizes

    def decode(self, kernels: Kernels, blocks: int = 528, threads: int = 256) -> None:
        for i, size in enumerate(self.sizes):
            if size:
                kernels.decode(self.coded[i], size, self.back[i], self.damaged[i : i + 1], blocks, threads)

    def right(self) -> bool:
        """Whether every page that has a code came back as it was."""
        torch.cuda.synchronize()
        coded = [i for i, size in enumerate(self.sizes) if size]
        return not bool(self.damaged.any()) and all(torch.equal(self.page[i], self.back[i]) for i in coded)


def graph_of(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Work as one launch, so that Python's time does not count."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def seconds_of(work: Callable[[], None], repeats: int = REPEATS) -> float:
    """Median of single runs, by events of the current stream."""
    work()
    taken = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(taken)


# ---- contents


def contents(total_bytes: int) -> dict[str, Callable[[], torch.Tensor]]:
    def normal(count: int) -> torch.Tensor:
        return torch.randn(count, device="cuda")

    half, full = total_bytes // 2, total_bytes // 4

    def squares() -> torch.Tensor:
        value = torch.zeros(full, device="cuda")
        for _ in range(32):
            value.add_(normal(full).square_(), alpha=1e-6 / 32)
        return value

    return {
        "bf16 normal(0, 0.02)": lambda: (normal(half) * 0.02).bfloat16(),
        "bf16 nn.Linear": lambda: torch.empty(half, device="cuda").uniform_(-1 / 64, 1 / 64).bfloat16(),
        "bf16 gradients": lambda: (normal(half) * normal(half) * 1e-4).bfloat16(),
        "bf16 gelu": lambda: torch.nn.functional.gelu(normal(half)).bfloat16(),
        "fp16 normal(0, 0.02)": lambda: (normal(half) * 0.02).half(),
        "fp32 normal(0, 0.02)": lambda: normal(full) * 0.02,
        "fp32 exp_avg_sq": squares,
        "zeros": lambda: torch.zeros(full, device="cuda"),
        "random bytes": lambda: torch.randint(0, 256, (total_bytes,), device="cuda", dtype=torch.uint8),
    }


# ---- sections


def alone(kernels: Kernels, total_bytes: int) -> None:
    """Ratio and rates of each content, nothing else running, for large and for small pages."""
    for name, make in contents(total_bytes).items():
        content = make()
        for page_mib in (32, 2) if total_bytes >= 64 * MIB else (1,):
            pages = Pages(content, page_mib * MIB)
            encoding = seconds_of(graph_of(lambda pages=pages: pages.encode(kernels)).replay)
            sizes = pages.read_sizes()
            plan = pages.plan[0].tolist()
            ratio = sum(size or pages.page_bytes for size in sizes) / pages.bytes
            values: dict[str, Any] = {"ratio": ratio, "encode_gb_s": pages.bytes / encoding / 1e9}
            if any(sizes):
                decoding = seconds_of(graph_of(lambda pages=pages: pages.decode(kernels)).replay)
                values.update(decode_gb_s=pages.bytes / decoding / 1e9, right=pages.right())
                values.update(escapes=sum(pages.plan[:, 2].tolist()) / pages.bytes * (4 if plan[0] == 3 else 2))
            row("alone", content=name, page_mib=page_mib, type=TYPES[plan[0]], code_bits=plan[1], **values)


def weights(total_bytes: int, kernels: Kernels, page_mib: int = 8) -> Pages:
    """Pages with the codes of bf16 weights."""
    pages = Pages(contents(total_bytes)["bf16 normal(0, 0.02)"](), min(page_mib * MIB, total_bytes // 2))
    pages.encode(kernels)
    pages.read_sizes()
    return pages


def shares(kernels: Kernels, total_bytes: int) -> None:
    """Rates with few blocks: a block of 1024 threads has an SM for itself or half of one."""
    without = Kernels(ahead=0)
    pages = weights(total_bytes, kernels)
    for threads in (256, 512, 1024):
        for blocks in (4, 8, 16, 32, 64, 132):
            rates = {}
            for name, some in (("decode_gb_s", kernels), ("decode_not_ahead_gb_s", without)):
                graph = graph_of(lambda some=some, b=blocks, t=threads: pages.decode(some, b, t))
                rates[name] = pages.bytes / seconds_of(graph.replay, 3) / 1e9
            graph = graph_of(lambda b=blocks, t=threads: pages.encode(kernels, b, t))
            rates["encode_gb_s"] = pages.bytes / seconds_of(graph.replay, 3) / 1e9
            row("shares", threads=threads, blocks=blocks, **rates)


def beside(main: Callable[[], None], usual: float, other: torch.cuda.CUDAGraph, priority: int) -> tuple[float, float]:
    """Seconds of `main`, which takes `usual` alone, and how many replays of `other` a second ended meanwhile on another stream."""
    side = torch.cuda.Stream(priority=priority)
    torch.cuda.synchronize()
    once = seconds_of(other.replay, 3)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    replays = int(usual * 2 / once) + 4
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(replays)]
    torch.cuda.synchronize()
    begin.record()
    side.wait_event(begin)
    main()
    end.record()
    with torch.cuda.stream(side):
        for mark in marks:
            other.replay()
            mark.record()
    torch.cuda.synchronize()
    seconds = begin.elapsed_time(end) / 1e3
    done = [begin.elapsed_time(mark) / 1e3 for mark in marks]
    within = [at for at in done if at <= seconds]
    # Of the replay that was under way at the end, the part that was done.
    part = 0.0
    if 0 < len(within) < len(done):
        part = (seconds - within[-1]) / (done[len(within)] - within[-1])
    return seconds, (len(within) + part) / seconds


def gemm(kernels: Kernels, total_bytes: int, size: int) -> None:
    """Matrix products in bf16 with a decoder or an encoder beside them, by blocks, threads and priority."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)

    def products() -> None:
        for _ in range(40):
            torch.mm(a, b, out=out)

    products()
    usual = seconds_of(products, 3)
    row("gemm", size=size, tflop_s=40 * 2 * size**3 / usual / 1e12)
    pages = weights(total_bytes, kernels)
    for blocks, threads in ((8, 1024), (16, 1024), (32, 1024), (16, 256), (32, 256), (64, 256), (132, 256)):
        for priority in (0, -1):
            for name, work in (("decode", pages.decode), ("encode", pages.encode)):
                graph = graph_of(lambda work=work, b=blocks, t=threads: work(kernels, b, t))
                seconds, rate = beside(products, usual, graph, priority)
                values = {"slow_down": seconds / usual, f"{name}_gb_s": rate * pages.bytes / 1e9}
                row("gemm", beside=name, blocks=blocks, threads=threads, high_priority=priority < 0, **values)


def copies(kernels: Kernels, total_bytes: int) -> None:
    """Both directions of the link at once, with and without a decoder and an encoder beside them."""
    bytes_each = min(256 * MIB, total_bytes)
    host = [torch.empty(bytes_each, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    device = [torch.empty(bytes_each, dtype=torch.uint8, device="cuda") for _ in range(2)]
    pages = weights(total_bytes, kernels)
    graphs = {
        "decode": graph_of(lambda: pages.decode(kernels, 32, 256)),
        "encode": graph_of(lambda: pages.encode(kernels, 32, 256)),
    }
    once = {name: seconds_of(graph.replay, 3) for name, graph in graphs.items()}
    rounds = 4

    def rates(names: tuple[str, ...]) -> dict[str, float]:
        streams = [torch.cuda.Stream() for _ in range(2 + len(names))]
        begin, ends = torch.cuda.Event(enable_timing=True), []
        torch.cuda.synchronize()
        begin.record()
        for stream in streams:
            stream.wait_event(begin)
        for i, (to, source) in enumerate(((device[0], host[0]), (host[1], device[1]))):
            with torch.cuda.stream(streams[i]):
                for _ in range(rounds):
                    to.copy_(source, non_blocking=True)
                ends.append(torch.cuda.Event(enable_timing=True))
                ends[-1].record()
        counts = []
        for name, stream in zip(names, streams[2:], strict=True):
            counts.append(int(rounds * bytes_each / 45e9 / once[name]) + 1)
            with torch.cuda.stream(stream):
                for _ in range(counts[-1]):
                    graphs[name].replay()
                ends.append(torch.cuda.Event(enable_timing=True))
                ends[-1].record()
        torch.cuda.synchronize()
        seconds = [begin.elapsed_time(end) / 1e3 for end in ends]
        values = {
            "h2d_gb_s": rounds * bytes_each / seconds[0] / 1e9,
            "d2h_gb_s": rounds * bytes_each / seconds[1] / 1e9,
        }
        for name, count, taken in zip(names, counts, seconds[2:], strict=True):
            values[f"{name}_gb_s"] = count * pages.bytes / taken / 1e9
        return values

    for names in ((), (), ("decode",), ("encode",), ("decode", "encode")):
        row("copies", beside="+".join(names), **rates(names))


def compiled_codec(folder: str) -> ctypes.CDLL:
    """The CPU codec as a library."""
    (Path(folder) / "wrapper.cpp").write_text(WRAPPER)
    sources = sorted((CSRC / "codec").glob("*.cpp"))
    library = f"{folder}/libcodec.so"
    command = ["g++", "-std=c++20", "-O3", "-shared", "-fPIC", f"-I{CSRC}", f"{folder}/wrapper.cpp", *sources]
    subprocess.run([*map(str, command), "-o", library], check=True, capture_output=True, text=True)
    loaded = ctypes.CDLL(library)
    address, size = ctypes.c_void_p, ctypes.c_size_t
    loaded.codec_encode.argtypes, loaded.codec_encode.restype = [address, size, address, size], size
    loaded.codec_decode.argtypes, loaded.codec_decode.restype = [address, size, address, size], ctypes.c_int
    loaded.codec_estimate.argtypes, loaded.codec_estimate.restype = [address, size], ctypes.c_double
    return loaded


def agree(kernels: Kernels, total_bytes: int) -> None:
    """CPU and GPU make the same bytes and read each other's; rates of one core of the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        library = compiled_codec(folder)
        for name, make in contents(min(total_bytes, 32 * MIB)).items():
            for cut in (0, 1234, 4097):
                content = make().view(torch.uint8).flatten()
                pages = Pages(content[: content.numel() - cut], content.numel() - cut)
                agree_on(name, kernels, library, pages, cut)


def agree_on(name: str, kernels: Kernels, library: ctypes.CDLL, pages: Pages, cut: int) -> None:
    page = pages.page[0].cpu()
    size = page.numel()
    coded, back = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)

    def timed(work: Callable[[], Any]) -> tuple[Any, float]:
        work()
        begin = time.perf_counter()
        result = work()
        return result, time.perf_counter() - begin

    ratio, estimating = timed(lambda: library.codec_estimate(page.data_ptr(), size))
    made, encoding = timed(lambda: library.codec_encode(page.data_ptr(), size, coded.data_ptr(), size))
    pages.encode(kernels)
    (gpu_made,) = pages.read_sizes()
    values: dict[str, Any] = {"estimate": ratio, "estimate_us": estimating * 1e6, "coded_bytes": made}
    values["same_code"] = made == gpu_made and torch.equal(coded[:made], pages.coded[0, :made].cpu())
    if made and gpu_made:
        pages.decode(kernels)
        values["gpu_of_gpu"] = pages.right()
        gpu_code = pages.coded[0].cpu()
        failed, decoding = timed(lambda: library.codec_decode(gpu_code.data_ptr(), gpu_made, back.data_ptr(), size))
        values["cpu_of_gpu"] = failed == 0 and torch.equal(back, page)
        pages.coded[0].copy_(coded)
        pages.back.zero_()
        pages.sizes = [made]
        pages.decode(kernels)
        values["gpu_of_cpu"] = pages.right()
        values.update(cpu_encode_gb_s=size / encoding / 1e9, cpu_decode_gb_s=size / decoding / 1e9)
        values["damage_seen"] = damage_seen(kernels, pages, made)
    row("agree", content=name, cut=cut, **values)


def damage_seen(kernels: Kernels, pages: Pages, made: int) -> bool:
    """A flipped bit of the header is told."""
    pages.damaged.zero_()
    pages.coded[0, 16] ^= 1
    pages.decode(kernels)
    torch.cuda.synchronize()
    seen = bool(pages.damaged.any())
    pages.coded[0, 16] ^= 1
    pages.damaged.zero_()
    return seen


def peer(kernels: Kernels, total_bytes: int) -> None:
    """nvCOMP's ANS on the same bytes, where it is installed."""
    try:
        from nvidia import nvcomp
    except ImportError as missing:
        row("peer", skipped=str(missing))
        return
    for name in ("bf16 normal(0, 0.02)", "fp32 normal(0, 0.02)"):
        content = contents(total_bytes)[name]().view(torch.uint8).flatten()
        for data_type in ("<u1", "<f2"):
            codec = nvcomp.Codec(algorithm="ANS", data_type=data_type)
            source = nvcomp.as_array(content)
            coded = codec.encode(source)
            encoding = seconds_of(lambda codec=codec, source=source: codec.encode(source), 3)
            decoding = seconds_of(lambda codec=codec, coded=coded: codec.decode(coded), 3)
            values = {"encode_gb_s": content.numel() / encoding / 1e9, "decode_gb_s": content.numel() / decoding / 1e9}
            row("peer", content=name, data_type=data_type, ratio=coded.buffer_size / content.numel(), **values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="agree,alone,shares,gemm,copies,peer", help="sections, with commas")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        row("machine", skipped="torch sees no CUDA device")
        return
    torch.manual_seed(1)
    total_bytes = (4 if arguments.smoke else 256) * MIB
    begin = time.perf_counter()
    kernels = Kernels()
    row("machine", device=torch.cuda.get_device_name(), torch=torch.__version__, registers=kernels.registers())
    sections: dict[str, Callable[[], None]] = {
        "agree": lambda: agree(kernels, total_bytes),
        "alone": lambda: alone(kernels, total_bytes),
        "shares": lambda: shares(kernels, total_bytes),
        "gemm": lambda: gemm(kernels, total_bytes, 1024 if arguments.smoke else 8192),
        "copies": lambda: copies(kernels, total_bytes),
        "peer": lambda: peer(kernels, total_bytes),
    }
    for name in arguments.only.split(","):
        since = time.perf_counter()
        try:
            sections[name]()
        except Exception as error:  # the next section may work
            row(name, error=f"{type(error).__name__}: {error}", where=traceback.format_exc().splitlines()[-3:])
        row(name, seconds=time.perf_counter() - since, total_seconds=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
