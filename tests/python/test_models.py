"""Whole programs, plain against paged: the same bits, with paging at work and no access missed."""

from __future__ import annotations

import pytest

import harness
import models


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, device: str) -> harness.Results:
    """Runs only what was selected on the command line."""
    wanted = {
        item.callspec.params["name"]
        for item in request.session.items
        if hasattr(item, "callspec") and item.path == request.path and "name" in item.callspec.params
    }
    return harness.Results([name for name in models.NAMES if name in wanted])


def skip_unless_repeatable(results: harness.Results, name: str) -> None:
    """Skips, loudly, if the plain run itself gives other bits when it is repeated; bits cannot be compared then."""
    plain = results.of("plain")[name]
    for repeat in harness.REPEATS:
        if wrong := harness.differences(plain.values, results.of(repeat)[name].values):
            pytest.skip(f"without tierpage this program does not repeat itself on this device: {wrong[0]}")


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("configuration", harness.CONFIGURATIONS)
def test_program(results: harness.Results, configuration: str, name: str) -> None:
    plain, paged = results.of("plain")[name], results.of(configuration)[name]
    if harness.DEVICE == "cuda" and paged.error is None and harness.differences(plain.values, paged.values):
        skip_unless_repeatable(results, name)
    harness.compare(plain, paged)
    assert paged.faults > 0, "nothing was paged: the test proves nothing"
    assert paged.missed == 0, f"{paged.missed} accesses that nothing announced"


@pytest.mark.parametrize("configuration", ["clock", "paranoid_disk"])
def test_disk_is_used(results: harness.Results, configuration: str) -> None:
    reports = list(results.of(configuration).values())  # small programs fit in RAM; together they do not
    assert not reports or sum(report.disk_bytes for report in reports) > 0, "nothing went to the disk"


def test_lists_are_split(results: harness.Results) -> None:
    if "foreach_lists" not in results.of("plain"):
        pytest.skip("foreach_lists was not selected")
    assert results.of("clock")["foreach_lists"].split > 0
