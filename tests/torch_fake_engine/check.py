"""Runs the torch library against the fake engine: check.py <torch library> <fake engine library>.

Every program must give the same bits as without paging; an access that was missed is a segmentation fault."""

import ctypes
import faulthandler
import gc
import os
import signal
import sys
import threading
import time

import programs
import torch
from typed import check_typed_kernels

HAS_HOOK = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 13)
MIN_PAGED_BYTES = 1024
OUT_OF_MEMORY, UNAVAILABLE, CODES = 2, 7, 11


class FakeError(RuntimeError):
    pass


class FakeOutOfMemoryError(torch.OutOfMemoryError):
    pass


class Setup:
    def __init__(self, library_path, engine_path):
        self.library = ctypes.PyDLL(library_path)
        self.library.tierpage_torch_last_error.restype = ctypes.c_char_p
        self.library.tierpage_torch_counter.restype = ctypes.c_uint64
        self.library.tierpage_torch_attach.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.library.tierpage_torch_touch.argtypes = [ctypes.c_uint64]
        self.library.tierpage_torch_typed_operators.restype = ctypes.c_char_p
        self.engine = ctypes.CDLL(engine_path)
        self.engine.fake_log.restype = ctypes.c_char_p
        self.engine.fake_engine.restype = ctypes.c_void_p
        self.engine.fake_engine.argtypes = [ctypes.c_uint64]
        for name in ("fake_begins", "fake_evictions", "fake_take_largest_scope"):
            getattr(self.engine, name).restype = ctypes.c_uint64
        for name in ("run_bytes_max", "budget"):
            getattr(self.engine, f"fake_set_{name}").argtypes = [ctypes.c_uint64]
        self.engine.fake_set_wait_slices.argtypes = [ctypes.c_int64]
        self.table = self.engine.fake_engine(MIN_PAGED_BYTES)
        classes = [FakeError] * CODES
        classes[OUT_OF_MEMORY] = FakeOutOfMemoryError
        self.classes = (ctypes.py_object * CODES)(*classes)
        assert self.library.tierpage_torch_install() == 0, self.library.tierpage_torch_last_error()

    def __enter__(self):
        code = self.library.tierpage_torch_attach(self.table, ctypes.cast(self.classes, ctypes.c_void_p))
        assert code == 0, self.library.tierpage_torch_last_error()
        return self

    def __exit__(self, *_):
        self.library.tierpage_torch_detach()

    def bits(self, tensor):
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        tensor = tensor.detach().resolve_conj().contiguous()
        self.library.tierpage_torch_touch(tensor.untyped_storage().data_ptr())
        return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()

    def run(self, program):
        torch.manual_seed(7)
        return [self.bits(tensor) for tensor in program()]


def check_programs(setup, selected, what):
    for program in selected:
        plain = setup.run(program)
        with setup:
            begins = setup.engine.fake_begins()
            paged = setup.run(program)
            assert setup.engine.fake_begins() > begins, program.__name__
        assert len(plain) == len(paged)
        different = [i for i, (a, b) in enumerate(zip(plain, paged)) if a != b]
        assert not different, f"{program.__name__}: results {different} of {len(plain)} differ"
        print(f"ok  {what}: {program.__name__}", flush=True)
    gc.collect()


def expect(error, text, action):
    try:
        action()
    except error as raised:
        assert text in str(raised), str(raised)
        assert type(raised) is error, type(raised)
        return
    raise AssertionError(f"{error.__name__} was not raised")


def check_splitting(setup):
    library, engine = setup.library, setup.engine
    selected = [programs.adamw_foreach, programs.adamw_fused, programs.sgd_and_others, programs.foreach_operators]
    for run_bytes in (1, 40_000):
        engine.fake_set_run_bytes_max(run_bytes)
        before = library.tierpage_torch_counter(2)
        check_programs(setup, selected, f"runs of {run_bytes} bytes")
        assert library.tierpage_torch_counter(2) > before
    engine.fake_set_run_bytes_max(2**63)
    sizes = []
    for run_bytes in (2**63, 30_000):
        engine.fake_set_run_bytes_max(run_bytes)
        with setup:
            tensors = [torch.ones(1000) for _ in range(20)]
            engine.fake_take_largest_scope()
            torch._foreach_add_(tensors, 1)
            sizes.append(engine.fake_take_largest_scope())
            expect(RuntimeError, "same number", lambda: torch._foreach_add_(tensors, tensors[:7]))
            del tensors
    engine.fake_set_run_bytes_max(2**63)
    assert sizes == [80_000, 28_000], sizes
    print("ok  splitting releases what a run has finished", flush=True)


def check_deferral(setup):
    """Fused optimizers whose indices run when they are next used, against the same program in its own order."""
    library, engine = setup.library, setup.engine
    engine.fake_set_run_bytes_max(1)
    engine.fake_set_defers(1)
    for hook in (1, 0) if HAS_HOOK else (0,):
        library.tierpage_torch_set_option(b"materializer", hook)
        before = library.tierpage_torch_counter(4)
        check_programs(setup, programs.DEFERRED, f"deferred, hook {hook}")
        assert library.tierpage_torch_counter(4) > before
    library.tierpage_torch_set_option(b"deferral", 0)
    before = library.tierpage_torch_counter(4)
    check_programs(setup, programs.DEFERRED, "deferral switched off")
    assert library.tierpage_torch_counter(4) == before
    library.tierpage_torch_set_option(b"deferral", 1)
    check_deferred_failure(setup)
    engine.fake_set_defers(0)
    engine.fake_set_run_bytes_max(2**63)
    print("ok  deferral", flush=True)


def fused_step(parameters, lr=0.1):
    optimizer = torch.optim.AdamW(parameters, lr=lr, fused=True)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def update(parameters):
    """The one operator of a fused step, and what it works on."""
    states = [[torch.full((40, 40), value) for _ in parameters] for value in (1.0, 0.0, 0.0)]
    steps = [torch.ones(()) for _ in parameters]
    return lambda: torch._fused_adamw_(
        parameters, *states, [], steps, lr=0.1, beta1=0.9, beta2=0.999, weight_decay=0.01, eps=1e-8,
        amsgrad=False, maximize=False,
    )  # fmt: skip


def check_deferred_failure(setup):
    """What fails before its kernel stays deferred, raises where the parameter is used, and runs once afterwards."""
    expected = [torch.full((40, 40), 2.0) for _ in range(3)]
    fused_step(expected)
    with setup:
        late = [torch.full((40, 40), 2.0) for _ in range(3)]
        fused_step(late)
        setup.engine.fake_set_budget(10_000)
        expect(FakeOutOfMemoryError, " out of memory.", lambda: late[1].sum())
        expect(FakeOutOfMemoryError, " out of memory.", lambda: late[1].sum())
        setup.engine.fake_set_budget(2**63)
        late[1].sum()
        late[1].sum()
        assert [setup.bits(x) for x in late] == [setup.bits(x) for x in expected]
        fused_step(late)
        setup.engine.fake_set_wait_slices(100_000)
        ticker = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
        ticker.start()
        expect(KeyboardInterrupt, "", lambda: late[0].sum())
        ticker.join()
        setup.engine.fake_set_wait_slices(0)
        fused_step(expected)
        assert [setup.bits(x) for x in late] == [setup.bits(x) for x in expected]
    print("ok  a deferred index that cannot run stays deferred", flush=True)


def check_out_of_memory(setup):
    with setup:
        x = torch.ones(100, 100)
        setup.engine.fake_set_budget(60_000)
        expect(FakeOutOfMemoryError, " out of memory. The allocation exceeds", lambda: x + 1)
        setup.engine.fake_set_budget(30_000)
        expect(FakeOutOfMemoryError, " out of memory. The operator needs", lambda: x.add_(1))
        block = programs.mlp()
        y = block(torch.ones(4, programs.SIZE)).sum()
        setup.engine.fake_set_budget(2_000)
        expect(FakeOutOfMemoryError, " out of memory.", y.backward)
        setup.engine.fake_set_budget(2**63)
        assert setup.bits(x) == setup.bits(torch.ones(100, 100))
    print("ok  out of memory: class and text, also through backward", flush=True)


def check_exceptions(setup):
    with setup:
        x, y = torch.ones(40, 40), torch.ones(41, 41)
        for _ in range(3):
            expect(RuntimeError, "must match", lambda: x + y)
            expect(RuntimeError, "cannot be multiplied", lambda: torch.mm(x, y))
        evictions = setup.engine.fake_evictions()
        x.add_(1)
        assert setup.engine.fake_evictions() > evictions, "a scope stayed open"
    print("ok  exceptions close their scope", flush=True)


def check_interrupt(setup):
    with setup:
        x = torch.ones(40, 40)
        setup.engine.fake_set_wait_slices(3)
        y = x + 1
        for action in (lambda: x.add_(1), lambda: torch.empty(40, 40)):
            setup.engine.fake_set_wait_slices(100_000)
            ticks = []

            def interrupt(ticks=ticks):
                ticks.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)

            ticker = threading.Timer(0.05, interrupt)
            ticker.start()
            start = time.monotonic()
            expect(KeyboardInterrupt, "", action)
            assert time.monotonic() - start < 5 and ticks, "the wait held the GIL"
            ticker.join()
        setup.engine.fake_set_wait_slices(0)
        x.add_(1)
        assert setup.bits(x) == setup.bits(y)
    print("ok  Ctrl-C leaves a wait", flush=True)


class Stop(Exception):
    pass


def check_interrupted_step(setup):
    """A signal between the pieces of a step: all of it or nothing, as without paging."""
    expected = [torch.full((40, 40), 2.0) for _ in range(6)]
    update(expected)()
    setup.engine.fake_set_run_bytes_max(1)
    with setup:
        for delay, done in ((0.03, False), (0.3, True)):
            parameters = [torch.full((40, 40), 2.0) for _ in range(6)]
            step = update(parameters)
            setup.engine.fake_set_wait_slices(30)  # a piece waits 0.15 s and more
            ticker = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT))
            ticker.start()
            expect(KeyboardInterrupt, "", step)
            ticker.join()
            setup.engine.fake_set_wait_slices(0)
            after = expected if done else [torch.full((40, 40), 2.0)] * 6
            assert [setup.bits(x) for x in parameters] == [setup.bits(x) for x in after], (delay, done)
    setup.engine.fake_set_run_bytes_max(2**63)
    print("ok  a step that has begun is not interrupted", flush=True)


def check_signal_handlers(setup):
    """Handlers run when the operator has returned; if that takes long, in its midst, where they may use tensors."""
    with setup:
        x, other = torch.ones(40, 40), torch.ones(40, 40)
        seen = []
        signal.signal(signal.SIGUSR1, lambda *_: seen.append(float(x.sum())))
        setup.engine.fake_set_wait_slices(60)
        ticker = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        ticker.start()
        x.add_(1)
        ticker.join()
        assert seen == [3200.0], seen

        def leave(*_):
            setup.engine.fake_set_wait_slices(0)
            seen.append(float(other.sum()))
            raise Stop

        signal.signal(signal.SIGUSR1, leave)
        setup.engine.fake_set_wait_slices(1_000_000)
        ticker = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        ticker.start()
        start = time.monotonic()
        expect(Stop, "", lambda: x.add_(1))
        assert 4 < time.monotonic() - start < 30
        ticker.join()
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        assert seen == [3200.0, 1600.0], seen
        assert setup.bits(x) == setup.bits(torch.full((40, 40), 2.0))
    print("ok  signal handlers run between operators", flush=True)


def check_late_operators(setup):
    with setup:
        torch.ones(40, 40).add_(1)
        for alias in ("Tensor(a!) x", "Tensor(a!)[] x"):
            library = torch.library.Library("fake_engine_check", "DEF")
            library.define(f"scale_({alias}, float by) -> ()")

            def scale(x, by):
                for tensor in x if isinstance(x, (list, tuple)) else [x]:
                    tensor.numpy().__imul__(by)

            library.impl("scale_", scale, "CPU")
            x = torch.ones(40, 40)
            x.add_(1)  # takes the new operator up
            setup.library.tierpage_torch_set_option(b"materializer", 0)
            x.mul_(1)
            paged = setup.library.tierpage_torch_counter(1)
            torch.ops.fake_engine_check.scale_([x] if "[]" in alias else x, 2.0)
            assert setup.library.tierpage_torch_counter(1) == paged + 1
            setup.library.tierpage_torch_set_option(b"materializer", 1)
            assert setup.bits(x) == setup.bits(torch.full((40, 40), 4.0))
            library._destroy()
            del torch.ops.fake_engine_check
    print("ok  operators registered later, and again with another schema", flush=True)


def check_fork(setup):
    with setup:
        x = torch.ones(40, 40)
        x.add_(1)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                expect(FakeError, "forked child", lambda: x.add_(1))
                small = torch.ones(40, 40).add_(1)  # not ours in the child
                status = 0 if float(small.sum()) == 3200.0 else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print("ok  fork", flush=True)


def check_lifetime(setup):
    with setup:
        x = torch.ones(200, 200)
        x.add_(1)
        references = sys.getrefcount(x)
        storage = x.untyped_storage()._cdata
        assert x.untyped_storage()._cdata == storage and sys.getrefcount(x) == references
        thread = threading.Thread(target=lambda: x.add_(1))
        thread.start()
        thread.join()
    del x
    assert torch.ones(100, 100).add_(1).sum() == 20_000
    print("ok  tensors outlive detach", flush=True)


def nanoseconds_per_call(action, repeats=40_000):
    best = float("inf")
    for _ in range(7):
        start = time.thread_time_ns()  # processor time: other programs do not count
        for _ in range(repeats):
            action()
        best = min(best, (time.thread_time_ns() - start) / repeats)
    return best


def measure(setup):
    """Cost of one operator; compare 'before install' with the others."""
    small, other = torch.ones(4), torch.ones(4)
    with setup:
        paged = torch.ones(1024)
        paged.add_(1)
    rows = [("detached", nanoseconds_per_call(lambda: small.add_(other)))]
    with setup:
        rows.append(("attached, nothing paged", nanoseconds_per_call(lambda: small.add_(other))))
        cost = nanoseconds_per_call(lambda: paged.add_(1), 5000)
        rows.append(("attached, paged (fake engine's mprotect included)", cost))
        rows.append(("attached, view", nanoseconds_per_call(small.t)))
    return rows


def main():
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    torch.set_num_threads(2)
    small, other = torch.ones(4), torch.ones(4)
    before = [
        ("before install", nanoseconds_per_call(lambda: small.add_(other))),
        ("before install, view", nanoseconds_per_call(small.t)),
    ]
    setup = Setup(sys.argv[1], sys.argv[2])
    has_hook = HAS_HOOK
    for hook in (1, 0) if has_hook else (0,):
        assert setup.library.tierpage_torch_set_option(b"materializer", hook) == 0
        selected = programs.PROGRAMS + ([programs.raw_pointers] if hook else [])
        check_programs(setup, selected, f"hook {hook}")
    setup.library.tierpage_torch_set_option(b"materializer", int(has_hook))
    check_splitting(setup)
    check_deferral(setup)
    setup.library.tierpage_torch_set_option(b"materializer", int(has_hook))
    check_typed_kernels(setup)
    assert setup.library.tierpage_torch_set_option(b"typed", 0) == 0
    check_programs(setup, programs.PROGRAMS, "boxed alone")
    setup.library.tierpage_torch_set_option(b"typed", 1)
    check_out_of_memory(setup)
    check_exceptions(setup)
    check_interrupt(setup)
    check_interrupted_step(setup)
    check_signal_handlers(setup)
    check_late_operators(setup)
    check_fork(setup)
    check_lifetime(setup)
    for name, cost in before + measure(setup):
        print(f"{cost:8.0f} ns  {name}")


if __name__ == "__main__":
    main()
