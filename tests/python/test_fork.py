"""Forked children: what they may do, what they are told, and that the parent stays right. Each test in a child."""

from __future__ import annotations

import pytest

import harness

PRELUDE = """
import faulthandler, gc, os, sys, harness, tierpage, torch
faulthandler.dump_traceback_later(200, exit=True)
harness.make_deterministic()
options = dict(harness.settings("paranoid", "."))
options["paranoid"] = False

def in_fork(work):
    # Runs work() in a forked child; returns its exit status.
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            print("child:", type(error).__name__, error, file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def expect(kind, text, action):
    try:
        action()
    except kind as error:
        assert text in str(error), str(error)
    else:
        raise AssertionError(f"{kind.__name__} was not raised")
"""

pytestmark = pytest.mark.skipif(harness.DEVICE != "cpu", reason="CUDA itself does not survive fork")


def test_child_cannot_use_paged_tensors(device: str) -> None:
    harness.run_child(PRELUDE + """
tierpage.enable(**options)
x = torch.arange(5000.0)
model = torch.nn.Linear(64, 64)
out = [torch.ones(5000) for _ in range(3)]
tierpage.evict(out)

def child():
    expect(Exception, "fork", lambda: x.add_(1))
    expect(Exception, "fork", lambda: model(torch.ones(2, 64)))
    expect(Exception, "fork", lambda: x.numpy())
    expect(Exception, "fork", lambda: x.tolist())
    expect(Exception, "fork", lambda: x.data_ptr())
    expect(Exception, "fork", lambda: torch.from_dlpack(x))
    expect(Exception, "fork", lambda: x.untyped_storage().tolist())
    expect(Exception, "fork", lambda: out[0].sum())
    expect(tierpage.TierpageError, "fork", tierpage.config)
    expect(tierpage.ConfigError, "fork", lambda: tierpage.enable(**options))
    assert not tierpage.is_enabled()
    assert tierpage.memory_stats() == {}
    # What the child makes itself is plain, and frees of the parent's tensors do no harm.
    y = torch.ones(5000).add_(1)
    assert float(y.sum()) == 10000.0 and not tierpage.where(y).paged
    small = torch.nn.Linear(64, 64)
    small(torch.ones(2, 64)).sum().backward()
    out.clear()
    gc.collect()

assert in_fork(child) == 0
for _ in range(3):
    x.add_(1)
assert float(x[10]) == 13.0
assert [float(t.sum()) for t in out] == [5000.0] * 3
model(torch.ones(2, 64)).sum().backward()
tierpage.disable()
assert float(x[10]) == 13.0
""")  # fmt: skip


def test_child_makes_tensors_of_any_size(device: str) -> None:
    """Its kernel looks for addresses of new memory: none of those that mean the parent's tensors."""
    harness.run_child(PRELUDE + """
tierpage.enable(**options)
x = torch.ones(500_000)

def child():
    tensors = [torch.zeros(2_000_000) for _ in range(6)] + [torch.zeros(300_000) for _ in range(6)]
    for t in tensors:
        t.add_(1)
    assert all(float(t.sum()) == t.numel() and not tierpage.where(t).paged for t in tensors)
    assert in_fork(lambda: torch.zeros(2_000_000).add_(1)) == 0

assert in_fork(child) == 0

class Large(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        return torch.full((262_144,), float(i))

loader = torch.utils.data.DataLoader(Large(), batch_size=4, num_workers=2, multiprocessing_context="fork")
assert [float(batch.sum()) for batch in loader] == [262_144.0 * 6, 262_144.0 * 22]
assert float(x.sum()) == 500_000
tierpage.disable()
""")  # fmt: skip


def test_parent_stays_right_while_children_write(device: str) -> None:
    harness.run_child(PRELUDE + """
tierpage.enable(**options)
x = torch.zeros(20_000)
array = x.numpy()   # mapped in parent and child

def child():
    try:
        array[:] = 7
    except BaseException:
        pass

for step in range(5):
    x.add_(1)
    status = in_fork(child)
    assert bool((x == step + 1).all()), "the child's write reached the parent"
    y = torch.ones(20_000) * step
    tierpage.evict(y)
    assert float(y.sum()) == 20_000.0 * step
del array
tierpage.disable()
""")  # fmt: skip


def test_fork_while_other_threads_page(device: str) -> None:
    harness.run_child(PRELUDE + """
import threading
options["device_budget"] = "1MiB"
tierpage.enable(**options)
stop = threading.Event()
failed = []

def work(index):
    try:
        tensors = [torch.full((20_000,), float(index)) for _ in range(20)]
        count = 0
        while not stop.is_set():
            for t in tensors:
                t.add_(1)
            count += 1
        assert all(bool((t == index + count).all()) for t in tensors)
    except BaseException as error:
        failed.append(error)

def child():
    for _ in range(20):
        torch.ones(3000).mul_(2).sum()

# torch initialises much at an operator's first call, behind locks that a child inherits as they are: a fork in that moment
# hangs the child, with tierpage or without. So every operator here has run once before.
child()
assert bool((torch.full((20_000,), 1.0).add_(1) == 2).all())
threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
for thread in threads:
    thread.start()

for _ in range(15):
    assert in_fork(child) == 0
stop.set()
for thread in threads:
    thread.join()
assert not failed, failed
tierpage.disable()
""")  # fmt: skip


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers(device: str, start: str) -> None:
    harness.run_child(PRELUDE + f"""
from models import Rows
tierpage.enable(**options)
weight = torch.ones(32)
seen = 0.0
for _ in range(2):
    loader = torch.utils.data.DataLoader(Rows(), batch_size=5, num_workers=2, multiprocessing_context={start!r}, persistent_workers=False)
    for batch in loader:
        seen += float((batch * weight).sum())
        weight.add_(0)
assert seen == 2 * 2 * 32 * sum(range(40)), seen
tierpage.disable()
""")  # fmt: skip


def test_enabled_in_the_child_only(device: str) -> None:
    harness.run_child(PRELUDE + """
def child():
    tierpage.enable(**options)
    x = torch.ones(5000)
    tierpage.evict(x)
    x.add_(1)
    assert float(x.sum()) == 10_000.0 and tierpage.where(x).paged
    tierpage.disable()

assert in_fork(child) == 0
x = torch.ones(5000)
assert not tierpage.where(x).paged
tierpage.enable(**options)
y = torch.ones(5000)
assert tierpage.where(y).paged
assert in_fork(lambda: None) == 0
tierpage.disable()
""")  # fmt: skip
