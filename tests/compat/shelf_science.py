"""Programs of libraries for graphs, probabilities, equations, symmetries, privacy, images, and of optimizers."""

from __future__ import annotations

from typing import Any

import torch
from shelf import Values, program, stepped
from torch import nn
from torch.nn import functional as F

from harness import Run

WIDTH = 192


def perceptron(run: Run, width: int = WIDTH) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)]
    return nn.Sequential(*layers).to(run.device)


def fitted(run: Run, model: nn.Module, optimizer: Any, steps: int = 4) -> Values:
    """Steps of an optimizer over random rows; the losses and all parameters."""

    def loss() -> torch.Tensor:
        x = torch.randn(8, WIDTH).to(run.device)
        return F.mse_loss(model(x), x)

    return stepped(run, model, optimizer, loss, steps)


@program("lion_pytorch", "an optimizer that is no part of torch")
def lion(run: Run) -> Values:
    from lion_pytorch import Lion

    model = perceptron(run)
    return fitted(run, model, Lion(model.parameters(), lr=1e-3))


@program("prodigyopt", "an optimizer that measures its own step")
def prodigy(run: Run) -> Values:
    from prodigyopt import Prodigy

    model = perceptron(run)
    return fitted(run, model, Prodigy(model.parameters()))


@program("schedulefree", "an optimizer that changes the weights between training and evaluation")
def schedule_free(run: Run) -> Values:
    from schedulefree import AdamWScheduleFree

    model = perceptron(run)
    optimizer = AdamWScheduleFree(model.parameters(), lr=1e-3)
    optimizer.train()
    values = fitted(run, model, optimizer)
    optimizer.eval()
    return values | {"evaluation": {name: value.clone() for name, value in model.named_parameters()}}


@program("bitsandbytes", "weights in 4 bits, unpacked as they are used")
def bitsandbytes_4bit(run: Run) -> Values:
    import bitsandbytes

    plain = perceptron(run)
    layers = []
    for layer in plain:
        if isinstance(layer, nn.Linear):
            quantized = bitsandbytes.nn.Linear4bit(WIDTH, WIDTH, quant_type="nf4", compute_dtype=torch.float32)
            quantized.load_state_dict(layer.state_dict())
            layers.append(quantized.to(run.device))
        else:
            layers.append(layer)
    model, values = nn.Sequential(*layers).eval(), {}
    with torch.no_grad():
        for turn in range(2):
            values[f"turn_{turn}"] = model(torch.randn(8, WIDTH).to(run.device))
            run.between()
    return values


@program("x_transformers", "rotary positions, normalised queries, memory tokens")
def x_transformers_decoder(run: Run) -> Values:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=128, depth=3, heads=4, rotary_pos_emb=True, attn_qk_norm=True, ff_glu=True)
    model = TransformerWrapper(num_tokens=512, max_seq_len=32, num_memory_tokens=4, attn_layers=layers).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss() -> torch.Tensor:
        ids = torch.randint(0, 512, (2, 24)).to(run.device)
        return F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())

    return stepped(run, model, optimizer, loss, 3)


@program("torch_geometric", "sums along the edges of a graph")
def graph_convolution(run: Run) -> Values:
    from torch_geometric.nn import GATConv, GCNConv

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = GCNConv(96, 128), GATConv(128, 32, heads=4)

        def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x, edges).relu(), edges)

    model = Graph().to(run.device)
    x, edges = torch.randn(200, 96).to(run.device), torch.randint(0, 200, (2, 900)).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return stepped(run, model, optimizer, lambda: model(x, edges).square().mean(), 4)


@program("gpytorch", "an exact Gaussian process: decompositions of its covariance")
def gaussian_process(run: Run) -> Values:
    import gpytorch

    class Process(gpytorch.models.ExactGP):
        def __init__(self, x: torch.Tensor, y: torch.Tensor, likelihood: Any) -> None:
            super().__init__(x, y, likelihood)
            self.mean = gpytorch.means.ConstantMean()
            self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, x: torch.Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    x = torch.linspace(0, 1, 120).to(run.device)
    y = torch.sin(6 * x)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().to(run.device)
    model = Process(x, y, likelihood).to(run.device)
    model.train()
    likelihood.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    return stepped(run, model, optimizer, lambda: -objective(model(x), y), 4)


@program("pyro", "variational inference, effects and parameters by name")
def variational_inference(run: Run) -> Values:
    import pyro
    from pyro.infer import SVI, Trace_ELBO
    from pyro.infer.autoguide import AutoNormal

    data = torch.randn(64, 96).to(run.device)

    def model(rows: torch.Tensor) -> None:
        ones = torch.ones(96, device=rows.device)
        centre = pyro.sample("centre", pyro.distributions.Normal(0 * ones, ones).to_event(1))
        with pyro.plate("rows", len(rows)):
            pyro.sample("row", pyro.distributions.Normal(centre, ones).to_event(1), obs=rows)

    pyro.clear_param_store()
    inference = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = []
    for _ in range(5):
        losses.append(inference.step(data))
        run.between()
    return {"losses": losses, "parameters": dict(pyro.get_param_store().items())}


@program("torchdiffeq", "an equation solved forwards, its adjoint backwards")
def differential_equation(run: Run) -> Values:
    from torchdiffeq import odeint_adjoint

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 64))

        def forward(self, time: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            return self.net(state)

    field = Field().to(run.device)
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-3)
    times = torch.linspace(0, 1, 4).to(run.device)

    def loss() -> torch.Tensor:
        start = torch.randn(8, 64).to(run.device)
        return odeint_adjoint(field, start, times, method="rk4")[-1].square().mean()

    return stepped(run, field, optimizer, loss, 2)


@program("e3nn", "products of representations, compiled from text at import")
def equivariant_product(run: Run) -> Values:
    from e3nn import o3

    layer = o3.FullyConnectedTensorProduct("16x0e + 8x1o", "1x0e + 1x1o", "16x0e + 8x1o").to(run.device)
    values: Values = {}
    for turn in range(2):
        x, y = torch.randn(20, 40).to(run.device), torch.randn(20, 4).to(run.device)
        out = layer(x, y)
        out.square().mean().backward()
        values[f"turn_{turn}"] = out
        run.between()
    return values | {
        "gradients": {name: value.grad for name, value in layer.named_parameters() if value.grad is not None}
    }


@program("monai", "a segmentation of volumes")
def volume_segmentation(run: Run) -> Values:
    from monai.losses import DiceLoss
    from monai.networks.nets import UNet

    model = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2)).to(run.device)
    optimizer, objective = torch.optim.Adam(model.parameters(), lr=1e-3), DiceLoss(to_onehot_y=True, softmax=True)

    def loss() -> torch.Tensor:
        x, y = torch.randn(1, 1, 16, 16, 16).to(run.device), torch.randint(0, 2, (1, 1, 16, 16, 16)).to(run.device)
        return objective(model(x), y)

    return stepped(run, model, optimizer, loss, 2)


@program("tensordict", "dictionaries of tensors as one, stacked and mapped to memory")
def tensor_dictionary(run: Run) -> Values:
    from tensordict import TensorDict

    rows = [
        TensorDict({"a": torch.randn(64, 40), "b": {"c": torch.randn(64, 8)}}, [64]).to(run.device) for _ in range(4)
    ]
    run.between()
    stacked = torch.stack(rows)
    changed = stacked.apply(lambda value: value * 2 + 1)
    run.between()
    return {"a": changed["a"], "c": changed["b", "c"], "picked": stacked[1:3, ::2]["a"].contiguous()}


@program("opacus", "a gradient for each example, clipped, with noise")
def private_training(run: Run) -> Values:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    model = GradSampleModule(perceptron(run))
    inner = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator(run.device).manual_seed(5)
    optimizer = DPOptimizer(inner, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=8, generator=generator)
    return fitted(run, model, optimizer, steps=3)


@program("captum", "which inputs mattered: gradients along a path")
def attributions(run: Run) -> Values:
    from captum.attr import IntegratedGradients

    model = perceptron(run).eval()
    values = {}
    for turn in range(2):
        x = torch.randn(4, WIDTH).to(run.device)
        values[f"turn_{turn}"] = IntegratedGradients(model).attribute(x, target=3, n_steps=8)
        run.between()
    return values
