"""Bad input of any kind gives one clear error that names the value, and leaves the process as it was."""

from __future__ import annotations

import os
import sys

import pytest
import torch

pytest.importorskip("tierpage._C")
import tierpage

MIB = 1024**2
BUDGETS = {"device": "cpu", "device_budget": 32 * MIB, "host_budget": 32 * MIB}


def torch_state():
    return (
        dict(torch.Tensor.__dict__),
        dict(torch.UntypedStorage.__dict__),
        tierpage.is_enabled(),
        len(os.listdir("/proc/self/fd")),
    )


@pytest.fixture(autouse=True)
def as_it_was():
    torch.arange(10.0).numpy()
    before = torch_state()
    yield
    tierpage.disable()
    assert torch_state()[:3] == before[:3]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"device_budget": -1}, "-1"),
        ({"device_budget": "900TiB"}, "900"),
        ({"host_budget": "lots"}, "lots"),
        ({"nvme_path": "/no/such/place"}, "/no/such/place"),
        ({"nvme_path": __file__}, "not a directory"),
        ({"nvme_path": "/dev/shm"}, "RAM"),
        ({"nvme_path": "/proc"}, "/proc"),
        ({"scope": "some"}, "some"),
        ({"polcy": "min"}, "policy"),
        ({"device": "cuda:99"}, "cuda"),
    ],
)
def test_enable_refuses(arguments, named):
    before = torch_state()
    with pytest.raises(tierpage.TierpageError, match=named) as caught:
        tierpage.enable(**{**BUDGETS, **arguments})
    assert len(str(caught.value)) < 1000
    assert torch_state() == before


def test_bad_environment(monkeypatch):
    monkeypatch.setenv("TIERPAGE_CONF", "device_budgt:1GiB")
    with pytest.raises(tierpage.ConfigError, match="device_budget"):
        tierpage.enable(**BUDGETS)


def test_second_enable():
    first = tierpage.enable(**BUDGETS)
    with tierpage.enable(**BUDGETS) as again:
        assert again.config == first.config
    assert first.active
    with pytest.raises(tierpage.ConfigError, match="33554432"):
        tierpage.enable(**{**BUDGETS, "device_budget": 16 * MIB})
    assert first.active
    with first:
        pass
    assert not tierpage.is_enabled()


def test_off_means_hints_do_nothing_and_questions_say_so():
    tensor = torch.zeros(4)
    with tierpage.pin(tensor):
        assert tierpage.prefetch(tensor) == tierpage.evict(tensor) == 0
    tierpage.step()
    tierpage.disable()
    assert tierpage.memory_stats() == {}
    for question in (
        tierpage.config,
        lambda: tierpage.pause("x"),
        lambda: tierpage.export_trace("x.json"),
        tierpage.memory_snapshot,
        lambda: tierpage.dump_snapshot("x.pickle"),
        tierpage.paged("x").__enter__,
    ):
        with pytest.raises(tierpage.TierpageError, match="not enabled"):
            question()


def test_bad_arguments_while_on(tmp_path):
    with tierpage.enable(**BUDGETS):
        for call in (
            lambda: tierpage.prefetch(3),
            lambda: tierpage.pin("text").__enter__(),
            lambda: tierpage.pause(""),
            lambda: tierpage.paged(5).__enter__(),
            lambda: tierpage.set_budget("nvme", 1),
            lambda: tierpage.set_budget("device", -5),
        ):
            with pytest.raises(tierpage.ConfigError):
                call()
        with pytest.raises(TypeError):
            tierpage.where([1])
        with pytest.raises(OSError, match="no-such"):
            tierpage.export_trace(tmp_path / "no-such" / "trace.json")


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_forked_child_is_told():
    with tierpage.enable(**BUDGETS):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            answer = "no error"
            try:
                tierpage.enable(**BUDGETS)
            except tierpage.ConfigError as error:
                answer = str(error)
            os.write(writer, f"{tierpage.is_enabled()} {answer}".encode())
            os._exit(0)
        os.close(writer)
        answer = os.read(reader, 4096).decode()
        os.close(reader)
        os.waitpid(child, 0)
        assert answer.startswith("False")
        assert "fork" in answer
        assert tierpage.is_enabled()
