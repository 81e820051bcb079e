"""Training with AdamW, checkpoint included: parameters, gradients and optimizer states are paged alike."""

import tempfile
from pathlib import Path

import torch

import tierpage


def train(steps: int) -> tuple[list[float], torch.nn.Module]:
    """Ordinary PyTorch; the same function runs with and without tierpage."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(8)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    losses = []
    for _ in range(steps):
        x = torch.randn(64, 1024)
        loss = torch.nn.functional.mse_loss(model(x), x)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        tierpage.step()  # a hint; does nothing while tierpage is off
    return losses, model


def main() -> None:
    expected, _ = train(5)
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as folder,
        tierpage.enable(folder, device="cpu", device_budget="48MiB", host_budget="24MiB", nvme_budget="512MiB"),
    ):
        losses, model = train(5)
        checkpoint = Path(folder) / "model.pt"
        torch.save(model.state_dict(), checkpoint)  # an ordinary checkpoint, loads without tierpage
        stats = tierpage.memory_stats()
        del model
    print(f"losses equal: {losses == expected}; faults: {stats['faults.count']}")
    if losses != expected:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
