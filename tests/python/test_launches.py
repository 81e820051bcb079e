"""The guard's Python side, over a library that only counts: who has CUPTI when, and what is told of it."""

import pytest
from torch.autograd import profiler

from tierpage.launches import LaunchGuard


class Library:
    def __init__(self, refusal: str = "") -> None:
        self.refusal = refusal
        self.opened = self.closed = 0
        self.fails = False

    def open_guard(self) -> str:
        self.opened += not self.refusal
        return self.refusal

    def close_guard(self) -> None:
        self.closed += 1
        if self.fails:
            raise MemoryError("what graphs use does not fit")


@pytest.fixture(autouse=True)
def torchs_own_door():
    before = profiler._prepare_profiler
    yield
    assert profiler._prepare_profiler is before
    profiler._prepare_profiler = before


def test_torchs_profiler_itself_makes_it_step_aside():
    library, said = Library(), []
    guard = LaunchGuard(library, said.append)
    guard.open()
    assert said == ["on"]
    assert library.opened == 1
    with profiler.profile():
        assert library.closed == 1
    assert said[-1] == "off: torch's profiler uses CUPTI"
    guard.close()
    assert library.closed == 1


def test_a_refusal_is_told_and_logged_and_changes_nothing(caplog):
    library, said = Library("CUPTI has another user"), []
    guard = LaunchGuard(library, said.append)
    before = profiler._prepare_profiler
    guard.open()
    assert said == ["off: CUPTI has another user"]
    assert "CUPTI has another user" in caplog.text
    assert profiler._prepare_profiler is before
    guard.close()
    assert library.closed == 0


def test_who_wrapped_the_door_after_us_keeps_it():
    library, said = Library(), []
    guard = LaunchGuard(library, said.append)
    original = profiler._prepare_profiler
    guard.open()
    ours = profiler._prepare_profiler

    def theirs(*args, **kwargs):
        return ours(*args, **kwargs)

    profiler._prepare_profiler = theirs
    guard.close()
    assert profiler._prepare_profiler is theirs
    assert library.closed == 1
    with profiler.profile():  # through their wrapper and ours to torch's
        pass
    assert library.closed == 1
    profiler._prepare_profiler = original


def test_how_it_stands_is_told_even_when_the_end_fails():
    library, said = Library(), []
    library.fails = True
    guard = LaunchGuard(library, said.append)
    guard.open()
    with pytest.raises(MemoryError):
        profiler._prepare_profiler()
    assert said[-1].startswith("off: ")
