"""Enabling and disabling again and again: nothing is used up."""

import re
import time
from pathlib import Path

import pytest
import torch

import tierpage


def address_space_bytes() -> int:
    found = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


@pytest.mark.parametrize("delete_first", [True, False])
def test_addresses_are_used_again(delete_first: bool) -> None:
    before = 0
    for cycle in range(12):
        tierpage.enable(device="cpu", device_budget="8MiB", host_budget="64MiB", min_paged_bytes="64KiB")
        parts = [torch.full((1 << 19,), float(cycle + i)) for i in range(8)]  # 16 MiB
        assert [part[-1].item() for part in parts] == [float(cycle + i) for i in range(8)]
        if delete_first:
            del parts
        tierpage.disable()
        parts = []
        time.sleep(0.05)  # the pager gives the last of it back
        if cycle == 2:
            before = address_space_bytes()
    # One range alone is 64 GiB.
    assert address_space_bytes() - before < 32 << 30
