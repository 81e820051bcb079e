"""Which calls of the driver, made in one thread, break a graph capture of another? Needs a GPU and torch; no tierpage.

    python tests/gpu/capture_probe.py [KIND...]     one line for each kind of call: captures tried, captures broken

The calling thread allows itself everything (cuThreadExchangeStreamCaptureMode: relaxed), as the pager's threads do.
Torch captures nothing more in a process once a capture broke (its random generator stays in the capture, and the next
graph ends the process), so a kind of call ends with the first broken one, and a fresh process goes on.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable

import torch

CU = ctypes.CDLL("libcuda.so.1")
SIZE = 2 << 20
RELAXED = 2
HOST = 3  # CU_MEM_LOCATION_TYPE_HOST_NUMA
DEVICE = 1


class Location(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class Flags(ctypes.Structure):
    _fields_ = [
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    ]


class Properties(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("handles", ctypes.c_int),
        ("location", Location),
        ("security", ctypes.c_void_p),
        ("flags", Flags),
    ]


class Access(ctypes.Structure):
    _fields_ = [("location", Location), ("flags", ctypes.c_int)]


def check(result: int, what: str) -> None:
    if result != 0:
        raise RuntimeError(f"{what}: error {result}")


class Calls:
    """The kinds of calls; each method makes a few, and puts everything back."""

    def __init__(self) -> None:
        self.base = ctypes.c_uint64()
        check(CU.cuMemAddressReserve(ctypes.byref(self.base), ctypes.c_size_t(64 << 20), 0, 0, 0), "reserve")
        self.event = ctypes.c_void_p()
        check(CU.cuEventCreate(ctypes.byref(self.event), 2), "event")
        self.stream = torch.cuda.Stream()
        self.captured = torch.cuda.Stream()
        self.host = torch.empty(8 << 20, dtype=torch.uint8)
        self.device = torch.empty(8 << 20, dtype=torch.uint8, device="cuda")
        self.locked = torch.empty(8 << 20, dtype=torch.uint8, pin_memory=True)
        self.context = ctypes.c_void_p()
        check(CU.cuCtxGetCurrent(ctypes.byref(self.context)), "context")

    def nothing(self) -> None:
        time.sleep(0.001)

    def made(self, kind: int, where: int) -> ctypes.c_uint64:
        handle = ctypes.c_uint64()
        properties = Properties(type=1, handles=0, location=Location(kind, where))
        check(CU.cuMemCreate(ctypes.byref(handle), ctypes.c_size_t(SIZE), ctypes.byref(properties), 0), "create")
        return handle

    def create(self) -> None:
        check(CU.cuMemRelease(self.made(DEVICE, 0)), "release")

    def create_in_ram(self) -> None:
        check(CU.cuMemRelease(self.made(HOST, 0)), "release")

    def map_and_unmap(self, kind: int = DEVICE, access: bool = True) -> None:
        handle = self.made(kind, 0)
        check(CU.cuMemMap(self.base, ctypes.c_size_t(SIZE), 0, handle, 0), "map")
        if access:
            allowed = Access(Location(DEVICE, 0), 3)
            check(CU.cuMemSetAccess(self.base, ctypes.c_size_t(SIZE), ctypes.byref(allowed), ctypes.c_size_t(1)), "set")
        check(CU.cuMemUnmap(self.base, ctypes.c_size_t(SIZE)), "unmap")
        check(CU.cuMemRelease(handle), "release")

    def map_without_access(self) -> None:
        self.map_and_unmap(access=False)

    def map_ram(self) -> None:
        self.map_and_unmap(HOST)

    def register(self) -> None:
        pointer = ctypes.c_void_p(self.host.data_ptr())
        check(CU.cuMemHostRegister_v2(pointer, ctypes.c_size_t(8 << 20), 1), "register")
        check(CU.cuMemHostUnregister(pointer), "unregister")

    def copies(self) -> None:
        stream = ctypes.c_void_p(self.stream.cuda_stream)
        check(
            CU.cuMemcpyHtoDAsync_v2(
                ctypes.c_uint64(self.device.data_ptr()),
                ctypes.c_void_p(self.locked.data_ptr()),
                ctypes.c_size_t(8 << 20),
                stream,
            ),
            "up",
        )
        check(CU.cuStreamSynchronize(stream), "synchronize")

    def events(self) -> None:
        check(CU.cuEventRecord(self.event, ctypes.c_void_p(self.stream.cuda_stream)), "record")
        CU.cuEventQuery(self.event)

    def events_on_the_default_stream(self) -> None:
        check(CU.cuEventRecord(self.event, ctypes.c_void_p(0)), "record")
        CU.cuEventQuery(self.event)

    def is_capturing(self) -> None:
        status = ctypes.c_int()
        CU.cuStreamIsCapturing(ctypes.c_void_p(0), ctypes.byref(status))
        CU.cuStreamIsCapturing(ctypes.c_void_p(self.stream.cuda_stream), ctypes.byref(status))

    def stream_id(self) -> None:
        for stream in (self.stream.cuda_stream, self.captured.cuda_stream):
            number = ctypes.c_ulonglong()
            CU.cuStreamGetId(ctypes.c_void_p(stream), ctypes.byref(number))
        time.sleep(0.0001)

    def new_events(self) -> None:
        event = ctypes.c_void_p()
        check(CU.cuEventCreate(ctypes.byref(event), 2), "event")
        check(CU.cuEventDestroy_v2(event), "destroy")

    def free_memory(self) -> None:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        check(CU.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "info")

    def torch_allocates(self) -> None:
        torch.empty(3 << 20, device="cuda")
        torch.cuda.empty_cache()

    def item(self) -> None:
        float(self.device[3])


def captures_beside(work: Callable[[], None], stream: torch.cuda.Stream, seconds: float) -> tuple[int, int, str]:
    stop = threading.Event()
    trouble: list[str] = []

    def run() -> None:
        torch.cuda.set_device(0)
        torch.cuda.current_stream()
        mode = ctypes.c_int(RELAXED)
        CU.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
        while not stop.is_set():
            try:
                work()
            except Exception as error:
                trouble.append(str(error)[:80])
                time.sleep(0.001)

    x = torch.ones(1 << 16, device="cuda")
    thread = threading.Thread(target=run)
    thread.start()
    tried = broken = 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until and not broken:
        graph = torch.cuda.CUDAGraph()
        tried += 1
        try:
            with torch.cuda.stream(stream):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    for _ in range(20):
                        x.add_(1)
                finally:
                    graph.capture_end()
        except Exception:
            broken += 1
    stop.set()
    thread.join()
    return tried, broken, f"{len(trouble)} calls failed: {trouble[0]}" if trouble else ""


def main() -> None:
    torch.ones(1 << 16, device="cuda").add_(1)
    calls = Calls()
    kinds = sys.argv[1:] or [name for name in vars(Calls) if not name.startswith("_") and name != "made"]
    for at, name in enumerate(kinds, 1):
        tried, broken, trouble = captures_beside(getattr(calls, name), calls.captured, 1.0)
        print(f"{name:30} {tried:5} captures, {broken:5} broken  {trouble}", flush=True)
        if broken and kinds[at:]:
            os.execv(sys.executable, [sys.executable, __file__, *kinds[at:]])


if __name__ == "__main__":
    main()
