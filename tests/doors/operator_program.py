"""The program that the operator may not change: it trains, and knows nothing of tierpage."""

import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
width = 4096 if device == "cuda" else 512
torch.manual_seed(0)
model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(12))).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
x = torch.randn(8, width).to(device)
for _ in range(2):
    loss = (model(x) - x).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"loss {loss.item().hex()}", flush=True)
