"""The shelf of tests/compat: programs of other libraries, plain against paged, by bits. What is not installed is skipped."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import harness

sys.path.append(str(Path(__file__).resolve().parent.parent / "compat"))

import shelf
import shelf_programs  # noqa: F401  (fills the shelf)

NAMES = [one.name for one in shelf.PROGRAMS]


@pytest.fixture(scope="module")
def rows(device: str, request: pytest.FixtureRequest) -> dict[str, shelf.Row]:
    """A row for each program that was selected and whose library is here."""
    wanted = {
        item.callspec.params["name"]
        for item in request.session.items
        if hasattr(item, "callspec") and item.path == request.path and "name" in item.callspec.params
    }
    programs = [one for one in shelf.PROGRAMS if one.name in wanted and not one.missing()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # is put back afterwards
        shelf.let_workers_find_programs()
        results = harness.Results([one.name for one in programs], "shelf_programs")
        return {row.program.name: row for row in shelf.rows_of(results, programs, "prefetch")}


@pytest.mark.parametrize("name", NAMES)
def test_program_of_the_shelf(rows: dict[str, shelf.Row], name: str) -> None:
    if name not in rows:
        pytest.skip("its library is not installed")
    assert not rows[name].trouble, rows[name].trouble


def report(values: dict[str, object], faults: int = 3, missed: int = 0, error: str | None = None) -> harness.Report:
    return harness.Report("p", values=values, faults=faults, missed=missed, error=error)


@pytest.mark.parametrize(
    ("plain", "paged", "said"),
    [
        (report({"a": 1}), report({"a": 1}), ""),
        (report({"a": 1}), report({"a": 2}), "other bits: a: 1 != 2"),
        (report({"a": 1}), report({}), "other bits: a: only in one run"),
        (report({}), report({}), "returns nothing"),
        (report({"a": 1}), report({"a": 1}, faults=0), "nothing was paged"),
        (report({"a": 1}), report({"a": 1}, missed=2), "2 accesses"),
        (report({}, error="Traceback\nValueError: x\n"), report({}), "the plain run failed: ValueError: x"),
        (report({"a": 1}), report({}, error="Traceback\nValueError: y\n"), "the paged run failed: ValueError: y"),
    ],
)
def test_what_counts_as_equal(plain: harness.Report, paged: harness.Report, said: str) -> None:
    trouble = shelf.trouble_of(plain, paged)
    assert said in trouble
    assert bool(said) == bool(trouble)


class Given:
    """Reports that are known before."""

    def __init__(self, **reports: harness.Report) -> None:
        self._reports = reports

    def of(self, configuration: str) -> dict[str, harness.Report]:
        return {"p": self._reports[configuration]}


@pytest.mark.parametrize(("again", "equal"), [(1, False), (5, True)])
def test_a_program_that_does_not_repeat_itself_is_named(again: int, equal: bool) -> None:
    given = Given(plain=report({"a": 1}), plain_2=report({"a": again}), prefetch=report({"a": 2}))
    (row,) = shelf.rows_of(given, [shelf.Program("p", "torch", "")], "prefetch")  # type: ignore[arg-type]
    assert (row.trouble == "") == equal
    assert row.repeats == (not equal)
