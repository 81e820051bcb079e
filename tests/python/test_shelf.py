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
        if hasattr(item, "callspec") and item.path == request.path
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
