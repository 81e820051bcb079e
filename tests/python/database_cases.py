"""What torch tests itself with, as cases that a worker runs plain and paged: every operator, module and optimizer.

A case has a name and runs one entry of a database of torch.testing; it hands over each result as a fingerprint: one line
per tensor, with a hash of its bits.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import itertools
import os
import pickle
import sys
import types
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import harness

FULL = os.environ.get("TIERPAGE_OPINFO_FULL") == "1"
SAMPLES = 10**9 if FULL else 2
STEPS = 3  # of an optimizer

# A result's name, its fingerprint, and whether it worked.
On = Callable[[str, list[str], bool], None]


@dataclass(frozen=True)
class Case:
    key: str
    name: str  # in the lists below
    run: Callable[[On], None]


# Operators whose results two plain runs do not share.
NOT_REPEATABLE = {
    "empty": "uninitialised memory",
    "empty_like": "uninitialised memory",
    "empty_permuted": "uninitialised memory",
    "empty_strided": "uninitialised memory",
    "new_empty": "uninitialised memory",
    "new_empty_strided": "uninitialised memory",
    "resize_": "grows into uninitialised memory",
    "resize_as_": "grows into uninitialised memory",
    "torch.ops.aten._flash_attention_forward": "without dropout the state of its random numbers is uninitialised memory",
    "torch.ops.aten._efficient_attention_forward": "likewise",
    "linalg.lstsq": "LAPACK's gelsy reads uninitialised pivots: each run takes another order",
}
# Operators that do not use paged memory the way that this test can compare.
NOT_PAGED = {
    "nn.functional.ctc_loss": "a composite reads the table of lengths, always on the host, by raw pointer: the fault handler serves it",
    "nn.functional.max_pool1d": "without gradients a composite of the CPU reads its input by raw pointer: likewise",
}


def import_databases() -> None:
    """What torch's test modules need at their import."""
    if "expecttest" not in sys.modules:
        try:
            import expecttest  # noqa: F401
        except ImportError:  # they only derive a class from it
            stand_in = types.ModuleType("expecttest")
            stand_in.TestCase = unittest.TestCase
            sys.modules["expecttest"] = stand_in


def all_cases() -> list[Case]:
    """Every entry of the installed torch's databases."""
    import_databases()
    return [*operator_cases(), *module_cases(), *optimizer_cases()]


def operator_cases() -> list[Case]:
    from torch.testing._internal.common_methods_invocations import op_db

    return [Case(op.formatted_name, op.name, lambda on, op=op: operator_results(op, on)) for op in op_db]


def module_cases() -> list[Case]:
    from torch.testing._internal.common_modules import module_db

    return [
        Case(f"module_{info.formatted_name}", info.name, lambda on, info=info: module_results(info, on))
        for info in module_db
    ]


def optimizer_cases() -> list[Case]:
    from torch.testing._internal.common_optimizers import optim_db

    return [
        Case(
            f"optimizer_{info.optim_cls.__name__}",
            info.optim_cls.__name__,
            lambda on, info=info: optimizer_results(info, on),
        )
        for info in optim_db
    ]


def dtypes_of(op: Any) -> list[Any]:
    import torch

    kinds = [torch.float32, torch.int64]
    if FULL:
        kinds += [torch.float64, torch.complex64, torch.bfloat16, torch.bool, torch.uint8]
    supported = op.supported_dtypes(harness.DEVICE)
    chosen = [kind for kind in kinds if kind in supported]
    return chosen or sorted(supported, key=str)[:1]


def tensors_of(value: Any) -> Iterator[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)


def fingerprint(value: Any) -> list[str]:
    """One line per leaf: kind, shape, and a hash of the bits."""
    lines = []
    for name, leaf in harness.flat("", value):
        made = harness.bits(leaf)
        if isinstance(made, tuple):
            lines.append(f"{name} {made[0]}{list(made[1]) if isinstance(made[1], tuple) else ''} {digest(made)}")
        else:
            lines.append(f"{name} {type(leaf).__name__} {made if isinstance(made, int | float | str) else ''}")
    return lines


def digest(value: Any) -> str:
    return hashlib.sha1(pickle.dumps(value)).hexdigest()[:12]


def attempt(work: Callable[[], Any]) -> tuple[list[str], bool]:
    """Fingerprint of the result, or the class of what it raised."""
    import tierpage

    try:
        return fingerprint(work()), True
    except tierpage.TierpageError:
        raise
    except Exception as error:
        return [f"raises {type(error).__name__}"], False


def operator_results(op: Any, on: On) -> None:
    """Its first samples, forward; for the first of them the in-place variant, and the gradients."""
    import torch

    key = op.formatted_name

    for dtype in dtypes_of(op):
        harness.seed_everything()
        try:
            samples = list(itertools.islice(op.sample_inputs(harness.DEVICE, dtype, requires_grad=False), SAMPLES))
        except (RuntimeError, NotImplementedError, ValueError, TypeError, ImportError) as error:
            if type(error).__module__.startswith("tierpage"):
                raise
            on(f"{key} {dtype} samples", [f"raises {type(error).__name__}"], False)
            continue
        for number, sample in enumerate(samples):
            name = f"{key} {dtype} sample {number}"
            inplace = copy.deepcopy(sample) if number == 0 and op.inplace_variant is not None else None
            harness.seed_everything()
            on(name, *attempt(lambda s=sample: [op.op(s.input, *s.args, **s.kwargs), s.input, s.args, s.kwargs]))
            if inplace is not None:
                harness.seed_everything()
                on(
                    f"{name} in place",
                    *attempt(lambda s=inplace: [op.inplace_variant(s.input, *s.args, **s.kwargs), s.input]),
                )
        if (
            op.supports_autograd
            and dtype in (torch.float32, torch.complex64)
            and dtype in op.supported_backward_dtypes(harness.DEVICE)
        ):
            harness.seed_everything()
            try:
                sample = next(iter(op.sample_inputs(harness.DEVICE, dtype, requires_grad=True)), None)
            except Exception as error:
                if type(error).__module__.startswith("tierpage"):
                    raise
                sample = None
            if sample is not None:
                harness.seed_everything()
                on(f"{key} {dtype} gradients", *attempt(lambda s=sample: gradients(op, s)))


def gradients(op: Any, sample: Any) -> Any:
    import torch

    outputs = op.op(sample.input, *sample.args, **sample.kwargs)
    if sample.output_process_fn_grad is not None:
        outputs = sample.output_process_fn_grad(outputs)
    outputs = [t for t in tensors_of(outputs) if t.requires_grad]
    inputs = [t for t in tensors_of([sample.input, sample.args, sample.kwargs]) if t.requires_grad and t.is_leaf]
    if not outputs or not inputs:
        raise ValueError("nothing to derive")
    return torch.autograd.grad(outputs, inputs, [torch.ones_like(t) for t in outputs], allow_unused=True)


def module_results(info: Any, on: On) -> None:
    """Its first inputs in training and in evaluation: outputs, gradients, and what it keeps."""
    import torch

    for training in (True, False):
        harness.seed_everything()
        inputs = info.module_inputs_func(info, harness.DEVICE, torch.float32, requires_grad=True, training=training)
        for number, sample in enumerate(itertools.islice(inputs, None if FULL else 3)):
            harness.seed_everything()
            name = f"module_{info.formatted_name} {'train' if training else 'eval'} {number} {sample.desc}"
            on(name, *attempt(lambda s=sample, t=training: module_outcome(info.module_cls, s, t)))


def module_outcome(module_class: Any, sample: Any, training: bool) -> Any:
    import torch

    made = sample.constructor_input
    kwargs = dict(made.kwargs)
    if "device" in inspect.signature(module_class.__init__).parameters:
        kwargs |= {"device": harness.DEVICE}
    module = module_class(*made.args, **kwargs).to(harness.DEVICE)
    module.train(training)
    if sample.forward_input is None:
        return list(module.parameters())
    args, kwargs = sample.forward_input.args, sample.forward_input.kwargs
    outputs = module(*args, **kwargs)
    given = [t for t in tensors_of([args, kwargs]) if t.requires_grad and t.is_leaf]
    wanted = given + [p for p in module.parameters() if p.requires_grad]
    results = [t for t in tensors_of(outputs) if t.requires_grad]
    derived = ()
    if results and wanted:
        derived = torch.autograd.grad(results, wanted, [torch.ones_like(t) for t in results], allow_unused=True)
    return [outputs, derived, module.state_dict()]


def optimizer_results(info: Any, on: On) -> None:
    """A few steps with every set of flags: parameters and state."""
    import torch
    from torch.testing._internal.common_optimizers import _get_optim_inputs_including_global_cliquey_kwargs

    skip = () if harness.DEVICE != "cpu" or FULL else ("differentiable",)
    inputs = _get_optim_inputs_including_global_cliquey_kwargs(harness.DEVICE, torch.float32, info, skip=skip)
    for number, sample in enumerate(inputs):
        harness.seed_everything()
        name = f"optimizer_{info.optim_cls.__name__} {number} {sample.desc}"
        on(name, *attempt(lambda s=sample: optimizer_outcome(info, s)))


def optimizer_outcome(info: Any, sample: Any) -> Any:
    import torch

    shapes = ((64, 48), (48, 32)) if "Muon" in info.optim_cls.__name__ else ((64, 48), (48,), (3, 5, 7), ())
    parameters = [torch.randn(shape, device=harness.DEVICE).requires_grad_() for shape in shapes]
    if sample.kwargs.get("differentiable"):
        parameters = [p.clone() for p in parameters]
    optimizer = info.optim_cls(parameters, **sample.kwargs)

    def derive() -> Any:
        for parameter in parameters:
            gradient = torch.randn(parameter.shape, device=harness.DEVICE)
            parameter.grad = gradient.to_sparse() if info.only_supports_sparse_grads else gradient
        return torch.zeros((), device=harness.DEVICE)

    for _ in range(STEPS):
        derive()
        if info.step_requires_closure:
            optimizer.step(derive)
        else:
            optimizer.step()
    return [[p.detach() for p in parameters], [optimizer.state[p] for p in parameters]]
