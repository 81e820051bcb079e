"""Records which storages the operators of a PyTorch program read, write, allocate and free, without a GPU.

The program runs on fake tensors: no memory behind them, no kernel runs. Durations are a model of one GPU: the longer
of arithmetic and memory traffic, plus a launch. The text that comes out is described in csrc/estimate/program.h.
Fake tensors are on the host device, because a CPU build of torch has no autograd for another. Where CUDA takes other
kernels (cuda_kernels), they are put in place; the host's flash attention stands for the device's.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["ComputeRates", "Recorder", "cuda_kernels"]

LAUNCH_MICROSECONDS = 4.0
WRITTEN_ALONE_MICROSECONDS = 20.0  # an operator without a recorded storage gets a line of its own from here on
# These read a few rows of an input, or its shape alone: no more of it than they put out.
SPARSE_READERS = ("aten::embedding", "aten::nll_loss_forward", "aten::nll_loss_backward")
# Matrix products and recurrent layers by their names, and whatever is not torch's own.
UNCOUNTED = re.compile(r"^aten::.*(_mm$|_mm_|mm$|rnn|lstm|gru)|^(?!aten::|prims?::)")
GROUPED_PRODUCT = "aten::_grouped_mm"
ALLOCATE_ONLY = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty")


@dataclass(frozen=True)
class ComputeRates:
    """What kernels reach: flops a second in floats of two bytes or fewer and in wider ones, bytes a second of memory."""

    half_flops_per_second: float
    single_flops_per_second: float
    memory_bytes_per_second: float


class FusedRmsNorm(torch.autograd.Function):
    """CUDA's root mean square norm: one operator each way; on the host it would be a chain of small ones."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float | None) -> torch.Tensor:
        """x: (..., dim), weight: (dim,)."""
        with torch._C._AutoDispatchBelowAutograd():
            out: torch.Tensor
            out, scale = torch.ops.aten._fused_rms_norm(x, weight.shape, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Gradients of x and weight."""
        x, weight, scale = ctx.saved_tensors
        with torch._C._AutoDispatchBelowAutograd():
            grads = torch.ops.aten._fused_rms_norm_backward(grad, x, weight.shape, scale, weight, [True, True])
        return grads[0], grads[1], None


@contextlib.contextmanager
def cuda_kernels() -> Iterator[None]:
    """Replaces the calls for which CUDA runs other operators than the host does."""
    plain_norm, plain_loss = functional.rms_norm, functional.cross_entropy

    def norm(x: torch.Tensor, shape: Any, weight: torch.Tensor | None = None, eps: float | None = None) -> Any:
        if weight is None:
            return plain_norm(x, shape, weight, eps)
        return FusedRmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]

    def loss(logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # CUDA's autocast runs log_softmax in float32, the host's does not.
        if torch.is_autocast_enabled("cpu") and logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        return plain_loss(logits, *args, **kwargs)

    fast = torch.backends.mha.get_fastpath_enabled()
    # One operator for a whole encoder layer, whose arithmetic nobody counts: its parts take the same kernels' time.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with mock.patch.object(functional, "rms_norm", norm), mock.patch.object(functional, "cross_entropy", loss):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def written(schema: torch.FunctionSchema, argument: torch.Argument, unscales: bool) -> bool:
    """Whether the operator writes the argument, as the interceptor announces it (csrc/torch/operator_info.cpp).

    A fused optimizer stores a gradient only where it unscales it, whatever its schema says.
    """
    if argument.alias_info is None or not argument.alias_info.is_write:
        return False
    fused = schema.name.startswith(("aten::_fused_ada", "aten::_fused_sgd"))
    return not fused or argument.name != "grads" or unscales


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes a line for each operator below autograd, and one wherever a storage that it knows dies.

    Holds no tensor and no storage, so that they die as they do without it. ``lines`` are the records so far.
    """

    def __init__(self, rates: ComputeRates, smallest_bytes: int = 2**20) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rates, self.smallest_bytes = rates, smallest_bytes
        self.lines: list[str] = []
        self.steps: list[tuple[int, float, int]] = []  # of each: operators, microseconds, bytes alive at most
        self.uncounted: set[str] = set()  # operators that calculate much, for which torch has no count of it
        self.loop_live: dict[int, int] | None = None
        self.live: dict[int, int] = {}  # id -> serial number of the allocation
        self._bytes: dict[int, int] = {}  # by id, of those
        self.late_frees = 0  # storages that only the garbage collector freed
        self._ids: dict[int, int] = {}  # address of the live storage -> id
        self._free_ids: list[int] = []
        self._dead: list[int] = []  # not written yet: in order of their ids, as autocast drops its copies in any order
        self._live_bytes = self._serial = 0
        self._skipped_us = 0.0
        self._operators, self._step_us, self._peak_bytes = 0, 0.0, 0
        self._open = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._open:
            self._record(func, args, kwargs, out)
        return out

    def allocate(self, tensor: torch.Tensor) -> None:
        """Writes down a storage that no recorded operator allocated; nothing for small or known ones."""
        storage = tensor.untyped_storage()
        if storage.nbytes() >= self.smallest_bytes and storage._cdata not in self._ids:
            self._write(f"A {self._begin_life(storage)} {storage.nbytes()}")

    def alive(self) -> dict[int, int]:
        """Bytes of the recorded storages that are alive now, by id."""
        return dict(self._bytes)

    @property
    def live_bytes(self) -> int:
        """Bytes of the recorded storages that are alive now."""
        return self._live_bytes

    def synchronize(self) -> None:
        """The program waits for the device: the end of a step."""
        if self._skipped_us:
            self._write(f"O (small) {self._skipped_us:.1f}")
            self._skipped_us = 0.0
        self._write("S")
        self.steps.append((self._operators, self._step_us, self._peak_bytes))
        self._operators, self._step_us, self._peak_bytes = 0, 0.0, self._live_bytes

    def begin_loop(self) -> None:
        """What follows is the step that may be repeated for ever."""
        self._write("L")
        self.loop_live = dict(self.live)

    def finish(self) -> None:
        """Ends the recording. RuntimeError where the loop leaves other storages alive than it found."""
        self._write_deaths()
        self._open = False
        before = len(self._ids)
        gc.collect()
        self.late_frees = before - len(self._ids)
        if self.loop_live is not None and (self.loop_live != self.live or self.lines[-1] != "S"):
            raise RuntimeError("the loop does not leave the storages alive that it found")

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        schema = func._schema
        tensors: list[tuple[torch.Tensor, bool]] = []  # read or written
        lists: list[tuple[Any, bool]] = []
        given = [*zip(schema.arguments, args, strict=False), *((a, kwargs.get(a.name)) for a in schema.arguments)]
        unscales = kwargs.get("grad_scale") is not None
        for argument, value in given:
            writes = written(schema, argument, unscales)
            if isinstance(value, torch.Tensor):
                tensors.append((value, writes))
            elif isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
                lists.append((value, writes))
        used = tensors + [(t, writes) for value, writes in lists for t in value if t is not None]
        known = {t.untyped_storage()._cdata for t, _ in used}
        outputs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        fresh = {t.untyped_storage()._cdata: t for t in outputs if t.untyped_storage()._cdata not in known}
        if not fresh and not any(writes for _, writes in used):
            return  # a view, or a question about shapes
        us = self._microseconds(func, args, kwargs, out, used, list(fresh.values()))
        for tensor, _ in used:
            self.allocate(tensor)
        is_list_operator = schema.name.startswith(("aten::_foreach_", "aten::_fused_")) and bool(lists)
        if is_list_operator:
            count = max(len(value) for value, _ in lists)
            groups = [[(v[i], w) for v, w in lists if i < len(v)] for i in range(count)]
            words = " ; ".join(filter(None, (self._uses(group + tensors) for group in groups)))
        else:
            words = self._uses(used)
        for tensor in fresh.values():
            storage = tensor.untyped_storage()
            if storage.nbytes() >= self.smallest_bytes:
                words += f" +{self._begin_life(storage)}:{storage.nbytes()}"
        self._operators += 1
        self._step_us += us
        self._skipped_us += us
        if words or us >= WRITTEN_ALONE_MICROSECONDS:
            mark = "O*" if is_list_operator else "O"
            self._write(f"{mark} {schema.name} {self._skipped_us:.1f} {words.strip()}".rstrip())
            self._skipped_us = 0.0

    def _write(self, line: str) -> None:
        self._write_deaths()
        self.lines.append(line)

    def _write_deaths(self) -> None:
        self.lines += [f"F {number}" for number in sorted(self._dead)]
        self._dead.clear()

    def _uses(self, pairs: list[tuple[torch.Tensor, bool]]) -> str:
        marks: dict[int, str] = {}
        for tensor, written in pairs:
            number = self._ids.get(tensor.untyped_storage()._cdata)
            if number is not None:
                marks[number] = "w" if written else marks.get(number, "r")
        return " ".join(f"{number}{mark}" for number, mark in marks.items())

    def _microseconds(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        used: list[tuple[torch.Tensor, bool]],
        fresh: list[torch.Tensor],
    ) -> float:
        name = func._schema.name
        if name in ALLOCATE_ONLY:
            return 0.0
        put_out = sum(map(touched_bytes, fresh))
        read = sum(touched_bytes(t) * (2 if written else 1) for t, written in used)
        if name in SPARSE_READERS:
            read = min(read, put_out)
        if UNCOUNTED.search(name) and name != GROUPED_PRODUCT and func._overloadpacket not in flop_registry:
            self.uncounted.add(name)
        rates = self.rates
        # The first operand says it: attention has float32 sums among the others.
        narrow = next((t.element_size() <= 2 for t, _ in used if t.is_floating_point()), False)
        arithmetic = flops(func, args, kwargs, out) / (
            rates.half_flops_per_second if narrow else rates.single_flops_per_second
        )
        return max(arithmetic, (put_out + read) / rates.memory_bytes_per_second) * 1e6 + LAUNCH_MICROSECONDS

    def _begin_life(self, storage: torch.UntypedStorage) -> int:
        number = heapq.heappop(self._free_ids) if self._free_ids else len(self._ids)
        self._ids[storage._cdata] = number
        self._serial += 1
        self.live[number] = self._serial
        self._bytes[number] = storage.nbytes()
        self._live_bytes += storage.nbytes()
        self._peak_bytes = max(self._peak_bytes, self._live_bytes)
        death = weakref.finalize(storage, self._end_life, storage._cdata, number, storage.nbytes())
        death.atexit = False
        return number

    def _end_life(self, address: int, number: int, nbytes: int) -> None:
        del self._ids[address]
        if not self._open:
            return
        self._dead.append(number)
        heapq.heappush(self._free_ids, number)
        del self.live[number], self._bytes[number]
        self._live_bytes -= nbytes


def touched_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the tensor; one that is expanded counts no more than what it is expanded from."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Arithmetic of the operator, 0 where torch has no formula.

    Causal attention counts in full: its kernels do half of that, at about half the rate of a matrix product.
    """
    name = func._schema.name
    if name == "aten::_scaled_dot_product_flash_attention_for_cpu":
        return int(sdpa_flop_count(*(t.shape for t in args[:3])))  # type: ignore[no-untyped-call]
    if name == "aten::_scaled_dot_product_flash_attention_for_cpu_backward":
        return int(sdpa_backward_flop_count(*(t.shape for t in args[:4])))  # type: ignore[no-untyped-call]
    if name == GROUPED_PRODUCT and (args[0].dim() == 2 or args[1].dim() == 3):  # experts, each with its rows
        return int(2 * args[0].numel() * args[1].shape[-1])
    formula = flop_registry.get(func._overloadpacket)
    return formula(*args, **kwargs, out_val=out) if formula else 0
