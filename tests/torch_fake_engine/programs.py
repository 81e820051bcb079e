"""Small programs whose tensors are all paged. Each returns the tensors that must be bit-equal to a plain run."""

import threading

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

SIZE = 48


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return gradient * 2 + x * 0


def mlp():
    return nn.Sequential(nn.Linear(SIZE, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, SIZE))


def state_of(model, optimizer):
    tensors = list(model.parameters()) + list(model.buffers())
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if torch.is_tensor(value)]
    return tensors


def train(optimizer_class=torch.optim.AdamW, model=None, steps=3, clip=True, **options):
    model = model or mlp()
    optimizer = optimizer_class(model.parameters(), **options)
    losses = []
    for _ in range(steps):
        x = torch.randn(32, SIZE)
        loss = functional.mse_loss(model(x), x)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses + state_of(model, optimizer)


def adamw_single():
    return train(foreach=False)


def adamw_foreach():
    return train(foreach=True, amsgrad=True)


def adamw_fused():
    return train(fused=True)


def sgd_and_others():
    return (
        train(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=True)
        + train(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True)
        + train(torch.optim.Adagrad, lr=0.1, fused=True)
        + train(torch.optim.RMSprop, lr=0.01, foreach=True)
        + train(torch.optim.Adamax, lr=0.01, foreach=True)
    )


def foreach_operators():
    a = [torch.randn(40, 10 + i) for i in range(9)]
    b = [torch.rand(40, 10 + i) + 0.5 for i in range(9)]
    results = [*torch._foreach_addcdiv(a, a, b, torch.arange(9.0))]
    results += torch._foreach_addcmul(a, a, b, [float(i) for i in range(9)])
    results += torch._foreach_mul(a, [i + 0.5 for i in range(9)])
    results += torch._foreach_add(a, torch.tensor(2.0), alpha=3)
    results += torch._foreach_norm(a) + torch._foreach_pow(2, b) + torch._foreach_lerp(a, b, 0.3)
    torch._foreach_add_(a, [i for i in range(9)])
    torch._foreach_copy_(b, a)
    out = [torch.empty_like(x) for x in a]
    torch.ops.aten._foreach_exp.out(a, out=out)
    found = torch.zeros(())
    torch._amp_foreach_non_finite_check_and_unscale_(b, found, torch.tensor(0.5))
    return results + a + b + out + [found]


def convolution():
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3))
    x = torch.randn(2, 3, 12, 12, requires_grad=True)
    y = model(x)
    y.square().mean().backward()
    pooled = functional.max_pool2d(functional.interpolate(x, scale_factor=2), 2)
    return [y, x.grad, pooled, *model.buffers(), *(p.grad for p in model.parameters())]


def batch_norm_statistics():
    norm = nn.BatchNorm1d(600)
    y = norm(torch.randn(8, 600))
    torch.native_batch_norm(y, None, None, norm.running_mean, norm.running_var, True, 0.1, 1e-5)
    return [y, norm.running_mean, norm.running_var]


def recurrent():
    model = nn.LSTM(SIZE, 32, num_layers=2, bidirectional=True)
    x = torch.randn(7, 5, SIZE, requires_grad=True)
    y, (h, c) = model(x)
    y.sum().backward()
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 5, 3, 2, 1]))
    z, _ = model(packed)
    return [y, h, c, x.grad, z.data, *(p.grad for p in model.parameters())]


def attention():
    layer = nn.TransformerEncoderLayer(SIZE, 4, 96, batch_first=True)
    x = torch.randn(3, 9, SIZE)
    y = layer(x)
    y.mean().backward()
    layer.eval()
    with torch.inference_mode():
        fast = layer(x)
    return [y, fast, *(p.grad for p in layer.parameters())]


def sparse_embedding():
    table = nn.Embedding(200, SIZE, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    for _ in range(2):
        table(torch.randint(0, 200, (500,))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    coo = torch.randn(64, 64).relu().to_sparse()
    csr = coo.to_sparse_csr()
    dense = torch.randn(64, 64)
    return [table.weight, coo @ dense, csr @ dense, coo.coalesce().values(), csr.to_dense()]


def checkpointing():
    block = mlp()
    x = torch.randn(32, SIZE, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    checkpoint(block, x, use_reentrant=True).sum().backward()
    return [x.grad, *(p.grad for p in block.parameters())]


def backward_in_threads():
    block = mlp()
    losses = [Doubled.apply(block(torch.randn(32, SIZE))).square().mean() for _ in range(4)]
    for loss in losses:
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    return [p.grad for p in block.parameters()]


def threads_at_once():
    results = [None] * 4
    shared = torch.randn(64, 64)

    def work(index):
        x = torch.full((64, 64), float(index))
        for _ in range(50):
            x = torch.tanh(x @ shared)
        results[index] = x

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results + [shared]


def autocast():
    block = mlp()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(torch.randn(32, SIZE))
    y.float().sum().backward()
    return [y, *(p.grad for p in block.parameters())]


def views_and_out():
    x = torch.randn(64, 64)
    out = torch.empty(0)
    torch.mm(x, x, out=out)
    torch.add(x, 1, out=out[:, ::1])
    x[::2].t()[3:7].mul_(3)
    x.diagonal().fill_(7)
    x.unsqueeze_(0).squeeze_(0).t_()
    y = x.expand(3, 64, 64).contiguous()
    y.resize_(5, 64, 64)[3:].zero_()
    z = torch.zeros(2048)
    z.set_(x.storage(), 64, (30, 64), (64, 1))
    z.index_put_((torch.arange(5),), torch.tensor(1.5))
    z.copy_(z.flip(0))
    return [x, out, y, z, x.conj(), torch.view_as_real(torch.complex(x, x)), torch.as_strided(x, (10, 10), (65, 1), 3)]


def lists():
    parts = [torch.randn(10, SIZE) for _ in range(6)]
    joined = torch.cat(parts)
    stacked = torch.stack(parts)
    picked = stacked[torch.tensor([0, 3]), :, torch.tensor([1, 2])]
    return [joined, stacked, picked, *torch.unbind(stacked), *torch.meshgrid(joined[0], joined[1], indexing="ij")]


def function_transforms():
    from torch.func import functional_call, grad, vmap

    block = mlp()
    parameters = {name: p.detach() for name, p in block.named_parameters()}

    def loss(p, x):
        return functional_call(block, p, (x,)).square().mean()

    gradients = vmap(grad(loss), (None, 0))(parameters, torch.randn(6, SIZE))
    return list(gradients.values())


def linear_algebra_and_random():
    x = torch.randn(40, 40)
    q, r = torch.linalg.qr(x)
    values, order = torch.sort(x)
    return [q, r, values, order, torch.linalg.inv(x), functional.dropout(x), torch.multinomial(x.abs(), 20), x.unique()]


def inference():
    # Here linear and matmul come to the interceptor whole; nested tensors have kernels of their own for them.
    with torch.inference_mode():
        weight, bias, x = torch.randn(40, 48), torch.randn(1000)[:40], torch.randn(30, 48)
        nested = torch.nested.nested_tensor([torch.randn(30, 48), torch.randn(20, 48)])
        plain = [
            functional.linear(x, weight),
            functional.linear(x, weight, bias),
            x @ weight.t(),
            functional.linear(x[0], weight),
        ]
        return (
            plain
            + list(functional.linear(nested, weight, bias).unbind())
            + list(torch.matmul(nested, nested.transpose(1, 2)).unbind())
        )


def raw_pointers():
    x = torch.randn(64, 64)
    shared = torch.from_dlpack(x)
    shared.add_(1)
    array = x.numpy()
    array *= 2
    return [x, torch.from_numpy(array.copy()), shared]


def parameters(count=4):
    return [torch.randn(40, 20 + i) for i in range(count)]


def fused_adamw(tensors, lr=0.1):
    return torch.optim.AdamW([{"params": tensors}], lr=lr, fused=True)


def give_gradients(tensors):
    for tensor in tensors:
        tensor.grad = torch.randn(*tensor.shape)  # randn_like would count as a use


def uses_after_a_step():
    """Every way to look at, or to write to, what a fused optimizer has just changed."""
    results = []
    uses = [
        lambda x, state: x.sum(),
        lambda x, state: x.t()[3].clone(),
        lambda x, state: x.grad.clone(),
        lambda x, state: state["exp_avg"].abs(),
        lambda x, state: x.add_(1).clone(),
        lambda x, state: x.grad.zero_().clone(),
        lambda x, state: state["exp_avg_sq"].fill_(0.5).clone(),
        lambda x, state: x.detach().view(-1)[7:9].mul_(2).clone(),
        lambda x, state: torch.stack([x, x]),
        lambda x, state: torch.cat(torch._foreach_mul([x, x.grad], 2)),
        lambda x, state: x.copy_(torch.zeros_like(x)).clone(),
    ]
    for use in uses:
        tensors = parameters()
        optimizer = fused_adamw(tensors)
        give_gradients(tensors)
        optimizer.step()
        results += [use(tensors[1], optimizer.state[tensors[1]]), use(tensors[3], optimizer.state[tensors[3]])]
        results += tensors + [value for state in optimizer.state.values() for value in state.values()]
    return results


def steps_without_use():
    """Parameters that nothing uses for several steps: each step must see the counts and the rate of its own time."""
    tensors = parameters()
    rate = torch.tensor(0.1)
    optimizer = fused_adamw(tensors, lr=rate)
    for step in range(4):
        give_gradients(tensors)
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        rate.mul_(0.5)
        if step == 2:
            tensors[0].mul_(1.5)
    return tensors + [value for state in optimizer.state.values() for value in state.values()]


def replaced_after_a_step():
    """Other data, other gradients, freed parameters: the step still works on what it was called with."""
    tensors = parameters()
    optimizer = fused_adamw(tensors)
    give_gradients(tensors)
    old_bytes, old_gradient = tensors[0].detach(), tensors[1].grad
    optimizer.step()
    tensors[0].data = torch.ones(40, 20)
    tensors[1].grad = torch.ones_like(tensors[1])
    tensors[2].grad = None
    states = [value for state in optimizer.state.values() for value in state.values()]
    kept = tensors[:3]
    del tensors, optimizer
    return kept + [old_bytes, old_gradient] + states


def shared_storages():
    """Parameters that are views of one tensor, and one that is given twice."""
    flat = torch.randn(4, 40, 40)
    views = list(flat.unbind(0)) + [torch.randn(40, 40)]
    optimizer = fused_adamw(views)
    give_gradients(views)
    optimizer.step()
    give_gradients(views)
    optimizer.step()
    return [flat, *views]


def used_in_threads():
    tensors = parameters(12)
    optimizer = fused_adamw(tensors)
    results = []
    for _ in range(3):
        give_gradients(tensors)
        optimizer.step()
        sums = [[None] * len(tensors) for _ in range(3)]

        def read(row):
            for index, tensor in enumerate(tensors):
                row[index] = tensor.sum()

        threads = [threading.Thread(target=read, args=(row,)) for row in sums]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        results += [value for row in sums for value in row]
    return results + tensors


DEFERRED = [
    adamw_fused, sgd_and_others, checkpointing, autocast, uses_after_a_step, steps_without_use, replaced_after_a_step,
    shared_storages, used_in_threads,
]  # fmt: skip
PROGRAMS = [
    train, adamw_single, adamw_foreach, adamw_fused, sgd_and_others, foreach_operators, convolution,
    batch_norm_statistics, recurrent, attention, sparse_embedding, checkpointing, backward_in_threads, threads_at_once,
    autocast, views_and_out, lists, function_transforms, linear_algebra_and_random, inference,
]  # fmt: skip
