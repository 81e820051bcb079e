"""The optimizer's step inside backward: each parameter steps as soon as its gradient is ready, and the gradient goes.

PyTorch's own recipe for less memory. With tierpage it is faster as well: gradients never wait for a step at the end, and the
states of one layer come up while the kernels of another run.
"""

import tempfile

import torch

import tierpage


def train(steps: int) -> list[float]:
    """Ordinary PyTorch; the same function runs with and without tierpage."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(8)))
    optimizers: dict[torch.Tensor, torch.optim.AdamW] = {
        p: torch.optim.AdamW([p], lr=1e-3, fused=True) for p in model.parameters()
    }

    def step_one(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()  # sets it to None: its memory is free for the next layer's

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step_one)  # type: ignore[no-untyped-call]
    losses = []
    for _ in range(steps):
        x = torch.randn(64, 1024)
        loss = torch.nn.functional.mse_loss(model(x), x)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
    return losses


def main() -> None:
    expected = train(5)
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as folder,
        tierpage.enable(folder, device="cpu", device_budget="48MiB", host_budget="24MiB", nvme_budget="512MiB"),
    ):
        losses = train(5)
        stats = tierpage.memory_stats()
    print(f"losses equal: {losses == expected}; faults: {stats['faults.count']}")
    if losses != expected:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
