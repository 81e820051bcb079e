"""
tierpage's engine: one Runtime per enable(). Not public; use the tierpage package.
"""
from __future__ import annotations
import collections.abc
import typing
import typing_extensions
__all__: list[str] = ['EngineError', 'Runtime', 'compare_storage', 'load_storage_extension', 'measure_links', 'option_words', 'probe_device', 'replay_program', 'status_codes', 'storage_peer_to_peer']
class EngineError(RuntimeError):
    """
    args: (code, message, system_error)
    """
class Runtime:
    """
    A running pager; lives as long as the process.
    """
    def __init__(self, options: dict) -> None:
        """
        From a dict with exactly the keys of option_words().
        """
    def add_source(self, descriptor: typing.SupportsInt | typing.SupportsIndex, name: str, bytes: typing.SupportsInt | typing.SupportsIndex, modified_ns: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        The place of its first byte. StorageError where the file is not of that size and time any more.
        """
    def addresses_info(self, addresses: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> list:
        ...
    def alive_bytes(self) -> int:
        ...
    def close(self) -> None:
        ...
    def config(self) -> dict:
        ...
    def engine_api(self) -> int:
        """
        Address of the tp_engine_api table.
        """
    def events(self) -> list:
        """
        (kind, start_ns, duration_ns, bytes, page) of movements, oldest first.
        """
    def evict(self, addresses: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> int:
        ...
    def let_source_go(self, place: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def levels(self) -> list:
        """
        Bytes in each tier and on their way, oldest first.
        """
    def missed_accesses(self) -> int:
        ...
    def pause(self, tag: str) -> int:
        ...
    def pin(self, addresses: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> int:
        ...
    def prefetch(self, addresses: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> int:
        ...
    def read_host(self, address: typing.SupportsInt | typing.SupportsIndex, first: typing.SupportsInt | typing.SupportsIndex, target: typing_extensions.Buffer) -> tuple:
        """
        (bytes copied from RAM, 0 where it has none of that page; where that page ends)
        """
    def read_source(self, offset: typing.SupportsInt | typing.SupportsIndex, target: typing_extensions.Buffer) -> None:
        ...
    def reading_ends(self) -> None:
        """
        What read_host keeps for the next read of the same page is given back.
        """
    def reset_peaks(self) -> None:
        ...
    def reset_stalled_most(self) -> None:
        ...
    def resume(self, tag: str) -> int:
        ...
    def set_budget(self, tier: str, bytes: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def set_tag(self, tag: str | None) -> None:
        ...
    def shutdown(self) -> None:
        ...
    def sourced_runs(self, address: typing.SupportsInt | typing.SupportsIndex) -> list:
        """
        (first byte in the region, place, bytes) of what is still the source's.
        """
    def stalled_most(self) -> dict:
        """
        Operators and tags that waited longest.
        """
    def stalls(self) -> list:
        """
        Ended waits, oldest first.
        """
    def stats(self) -> dict:
        ...
    def tags(self) -> list:
        """
        Where the live tensors of each tag lie, and how often they were used; most bytes first.
        """
    def take_notices(self) -> str:
        ...
    def unpin(self, handle: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
def compare_storage(kind: str, index: typing.SupportsInt | typing.SupportsIndex, directory: str, peer_to_peer: bool) -> dict:
    """
    GB/s between drive and device through RAM and by the extension; `problem` says why not.
    """
def load_storage_extension(path: str) -> str:
    """
    Why it cannot be used; empty: it is loaded.
    """
def measure_links(device: str, device_index: typing.SupportsInt | typing.SupportsIndex = 0, nvme_path: collections.abc.Sequence[str] = [], code_kernels: bytes = b'') -> dict:
    """
    GB/s of each link, measured for about two seconds; of coding and decoding a page too, on a GPU where the kernels for it are given (page_code.compiled).
    """
def option_words() -> dict:
    """
    Options of a Runtime, all of which must be given, and the words that each may be; none where it is a value.
    """
def probe_device(kind: str, index: typing.SupportsInt | typing.SupportsIndex) -> dict:
    ...
def replay_program(program: str, device_bytes: typing.SupportsInt | typing.SupportsIndex, host_bytes: typing.SupportsInt | typing.SupportsIndex, nvme_bytes: typing.SupportsInt | typing.SupportsIndex, rates: dict, loops: typing.SupportsInt | typing.SupportsIndex, compress_always: bool = False) -> dict:
    """
    Replays a recorded program on a modelled machine: {"steps": a dict for each step, "bound_seconds": of the step that repeats, 0 without one}. Rates in bytes a second, costs in microseconds; those left out are an H200's. compress_always: what is rewritten in each step is coded whatever that costs.
    """
def status_codes() -> dict:
    """
    Names in tierpage.errors and numbers of what an EngineError may carry.
    """
def storage_peer_to_peer() -> str:
    """
    Why drives cannot reach device memory by themselves; empty: they may.
    """
__version__: str = '0.1.0'
