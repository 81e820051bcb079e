"""A model of 64 MiB in 32 MiB of device memory: the three lines, and where things live."""

import tempfile

import torch

import tierpage


def main() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(16)))
    x = torch.randn(8, 1024)
    expected = plain(x)

    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as folder,
        tierpage.enable(folder, device="cpu", device_budget="32MiB", host_budget="32MiB", nvme_budget="256MiB"),
    ):
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(16)))  # made now, hence paged
        same = torch.equal(model(x), expected)
        print(f"same bits as without tierpage: {same}")
        print("first weight:", tierpage.where(next(model.parameters())))
        print(tierpage.memory_summary())
        del model
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
