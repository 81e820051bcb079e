"""The rules of tierpage.advice on statistics made by hand: each speaks when its numbers say so, and only then."""

from __future__ import annotations

from typing import Any

import pytest

from tierpage import advice
from tierpage.memory import summary_of

MIB = 1024**2


def statistics(**changed: float) -> dict[str, Any]:
    """Ten seconds without a plan in which nothing stands out; keywords use two underscores for a dot."""
    stats: dict[str, Any] = {
        "elapsed_seconds": 10.0,
        "predictor.predicted": 9_900,
        "predictor.mispredicted": 100,
        "prefetch.issued": 1000,
        "prefetch.useful": 990,
        "prefetch.late": 10,
        "prefetch.wasted": 0,
        "live_bytes.peak": 100 * MIB,
        "budget_bytes.device": 200 * MIB,
    }
    stats |= {name.replace("__", "."): value for name, value in changed.items()}
    causes = {name: value for name, value in stats.items() if name.startswith("stall_seconds.")}
    stats.setdefault("stall_seconds.total", sum(causes.values()))
    return stats


def planned(fetched: int, whole: int, **changed: float) -> dict[str, Any]:
    plan = {
        "plan.period_uses": 1000, "plan.capacity_bytes": 100 * MIB, "plan.whole_bytes": whole,
        "plan.fetched_bytes": fetched, "plan.written_bytes": 0,
        "recurrence.uses": 1100, "recurrence.fetched_bytes": 220 * MIB, "recurrence.written_bytes": 0,
        "recurrence.elapsed_seconds": 2.0, "recurrence.stall_seconds.fault": 0.5,
        "recurrence.stall_seconds.copy_wait": 0.7, "recurrence.stall_seconds.total": 1.2,
        "recurrence.link_seconds.to_device": 1.6, "recurrence.link_bytes.to_device": 220 * MIB,
    }  # fmt: skip
    return statistics() | plan | {name.replace("__", "."): value for name, value in changed.items()}


def lines(stats: dict[str, Any]) -> str:
    return "\n".join(advice.advise(stats))


def test_nothing_to_say() -> None:
    assert advice.advise({}) == []
    assert advice.advise(statistics()) == []
    assert advice.advise(statistics(stall_seconds__fault=0.3, stall_seconds__map=0.1)) == []


def test_a_plan_says_by_how_much_the_budget_is_short() -> None:
    stats = planned(fetched=200 * MIB, whole=164 * MIB)
    assert advice.budget_missing_bytes(stats) == 64 * MIB
    assert "device_budget larger by 64.0 MiB" in lines(stats)
    assert "200.0 MiB each recurrence" in lines(stats)
    assert advice.moved(stats, "fetched") == (200 * MIB, 200 * MIB)
    assert "device_budget" not in lines(planned(fetched=0, whole=90 * MIB))


def test_without_a_plan_the_live_tensors_say_it() -> None:
    stats = statistics(live_bytes__peak=300 * MIB, stall_seconds__eviction_wait=2.0)
    assert "device_budget larger by 100.0 MiB" in lines(stats)
    assert "device_budget" not in lines(statistics(stall_seconds__eviction_wait=2.0))
    # Waits that more device memory does not end.
    assert "device_budget" not in lines(statistics(live_bytes__peak=300 * MIB, stall_seconds__host=2.0))


def test_a_larger_batch_by_the_factor_of_link_to_computing() -> None:
    assert "about 2.0 times the tokens" in lines(planned(fetched=1, whole=0))  # 1.6 s of link, 0.8 s of all else
    assert "into the device" in lines(planned(fetched=1, whole=0))
    more = planned(fetched=1, whole=0, recurrence__elapsed_seconds=4.0)
    assert "tokens" not in lines(more)
    never = planned(fetched=1, whole=0, recurrence__stall_seconds__total=2.5)
    assert "more than 100 times" in lines(never)
    stats = statistics(link_seconds__to_host=8.0, link_seconds__to_device=7.0, stall_seconds__eviction_wait=6.0)
    assert "about 2.0 times" in lines(stats)
    assert "out of the device" in lines(stats)


def test_prefetching() -> None:
    off = statistics(prefetch__issued=0, prefetch__useful=0, prefetch__late=0, stall_seconds__fault=3.0)
    assert "prefetch=True" in lines(off)
    assert "prefetch=True" not in lines(off | {"predictor.predicted": 10})
    late = statistics(prefetch__late=600, prefetch__useful=400, stall_seconds__copy_wait=3.0)
    assert "60% of the prefetches came late" in lines(late | {"link_seconds.to_device": 5.0})
    assert "came late" not in lines(late | {"link_seconds.to_device": 9.0})  # no time left on the link
    assert "came late" not in lines(statistics(stall_seconds__copy_wait=3.0))


def test_programs_that_do_not_repeat_themselves() -> None:
    wasted = statistics(prefetch__wasted=500, prefetch__useful=500, prefetch__late=0, stall_seconds__fault=3.0)
    assert "50% of the prefetches left unused" in lines(wasted)
    surprised = statistics(predictor__predicted=1000, predictor__mispredicted=3000, stall_seconds__fault=3.0)
    assert "only 25% of the uses" in lines(surprised)
    assert "only" not in lines(statistics(predictor__predicted=1, predictor__mispredicted=3, stall_seconds__fault=3.0))


def test_more_memory_below() -> None:
    disk = {"link_seconds.nvme_read": 4.0, "resident_bytes.nvme.current": 512 * MIB}
    assert "host_budget larger by 512.0 MiB" in lines(statistics(stall_seconds__fault=3.0) | disk)
    assert "host_budget" not in lines(statistics(stall_seconds__fault=3.0) | disk | {"link_seconds.nvme_read": 0.5})
    assert "host_budget" not in lines(statistics(stall_seconds__fault=3.0))


def test_our_own_side() -> None:
    assert "frame_bytes_max" in lines(statistics(stall_seconds__map=1.0))
    assert "frame_bytes_max" not in lines(statistics(stall_seconds__map=0.6, stall_seconds__fault=5.0))
    assert "processor of its own" in lines(statistics(stall_seconds__host=1.0))
    assert "processor of its own" not in lines(statistics(stall_seconds__host=1.0, stall_seconds__fault=5.0))


@pytest.mark.parametrize("cause", advice.CAUSES)
def test_every_cause_of_an_operator_has_a_remedy(cause: str) -> None:
    row = {"seconds.host": 0.1, f"seconds.{cause}": 1.0, "bytes": 10, "predicted_bytes": 0}
    assert advice.main_cause(row) == cause
    assert advice.help_for(row)


def test_a_fault_that_was_predicted_has_another_remedy() -> None:
    row = {"seconds.fault": 1.0, "bytes": 10, "predicted_bytes": 10}
    assert advice.help_for(row) != advice.help_for(row | {"predicted_bytes": 0})


def test_comparison_is_flat_and_complete() -> None:
    row = advice.comparison(planned(fetched=200 * MIB, whole=164 * MIB))
    assert row["planned_fetched_bytes"] == row["measured_fetched_bytes"] == 200 * MIB
    assert row["predicted_share"] == 0.99
    assert row["times_of"] == "the last recurrence"
    assert row["waited_seconds_copy_wait"] == 0.7
    assert all(isinstance(value, int | float | str) for value in row.values())
    bare = advice.comparison({})
    assert bare["times_of"] == "all so far"
    assert "planned_fetched_bytes" not in bare


def test_verdict_is_said_in_every_case() -> None:
    assert advice.verdict({}) == "Nothing was measured."
    little = advice.verdict(statistics(stall_seconds__fault=0.1))
    assert little == "Waited 0.100 s of 10.000 s (1.0%; all so far): too little to be worth a change."
    much = advice.verdict(planned(fetched=200 * MIB, whole=164 * MIB))
    assert much.startswith(
        "Waited 1.200 s of 2.000 s (60.0%; the last recurrence), mostly for copy_wait. What would have"
    )
    assert "device_budget larger by 64.0 MiB" in much
    assert "No setting stands out" in advice.verdict({"elapsed_seconds": 1.0, "stall_seconds.total": 0.5})


def test_summary_shows_all_of_it() -> None:
    operator = {"name": "aten::mm", "count": 7, "seconds": 1.2, "bytes": 10 * MIB, "predicted_bytes": 5 * MIB}
    operator |= {f"seconds.{cause}": 0.0 for cause in advice.CAUSES} | {"seconds.eviction_wait": 1.2}
    stats = planned(fetched=200 * MIB, whole=164 * MIB) | {"stall_seconds.fault": 3.0, "stall_seconds.total": 4.0}
    text = summary_of(stats, "cpu:0", [operator] * 20, [operator | {"name": "weights"}])
    for part in ("Stalls", "eviction_wait", "aten::mm", "weights", "a larger device_budget", "Predicted against measured",
                 "uses that came as predicted", "fetched in a recurrence", "What would have helped", "75%"):  # fmt: skip
        assert part in text, part
    assert text.count("aten::mm") == 10
    assert "What would have helped" not in summary_of({}, "cpu:0")
