"""Typed kernels must announce just what the boxed ones announce: every operator that has one, both ways, over arguments
of every kind."""

import torch

SIDE = 64  # a matrix of so many rows and columns is paged

# What the schema alone does not say. M: a paged matrix, L: paged indices, B: paged booleans, V: a paged row.
SAMPLES = {
    "aten::linear": "M, M, None",
    "aten::addmm": "M, M, M",
    "aten::addmm.out": "M, M, M, out=M",
    "aten::bmm": "C, C",
    "aten::bmm.out": "C, C, out=C",
    "aten::baddbmm": "C, C, C",
    "aten::convolution": "I, K, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1",
    "aten::convolution_backward": "I, I, K, [0], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]",
    "aten::where.self": "B, M, M",
    "aten::masked_fill.Scalar": "M, B, 2",
    "aten::masked_fill_.Scalar": "M, B, 2",
    "aten::bitwise_and.Tensor": "L, L",
    "aten::bitwise_or.Tensor": "L, L",
    "aten::bitwise_not": "L",
    "aten::clamp": "M, 0.5, 1",
    "aten::clamp_": "M, 0.5, 1",
    "aten::clamp_min": "M, 0.5",
    "aten::native_dropout": "M, 0.5, True",
    "aten::bernoulli_.float": "M, 0.5",
    "aten::sum.dim_IntList": "M, [1]",
    "aten::mean.dim": "M, [1]",
    "aten::max.dim": "M, 1",
    "aten::cumsum": "M, 1",
    "aten::topk": "M, 5",
    "aten::_softmax": "M, 1, False",
    "aten::_log_softmax": "M, 1, False",
    "aten::native_layer_norm": "M, [64], M[0], M[1], 1e-5",
    "aten::_fused_rms_norm": "M, [64], M[0], 1e-5",
    "aten::native_group_norm": "I, P, P, 2, 4, 1024, 2, 1e-5",
    "aten::native_batch_norm": "I, P, P, P, Q, True, 0.1, 1e-5",
    "aten::cudnn_batch_norm": "I, P, P, P, Q, True, 0.1, 1e-5",
    "aten::native_batch_norm_backward": "I, I, P, P, Q, P, Q, True, 1e-5, [True, True, True]",
    "aten::cudnn_batch_norm_backward": "I, I, P, P, Q, P, Q, 1e-5, M",
    "aten::max_pool2d_with_indices": "I, [2, 2]",
    "aten::max_pool2d_with_indices_backward": "S, I, [2, 2], [2, 2], [0, 0], [1, 1], False, J",
    "aten::_scaled_dot_product_flash_attention": "A, A, A",
    "aten::_scaled_dot_product_efficient_attention": "A, A, A, A, False",
    "aten::_scaled_dot_product_cudnn_attention": "A, A, A, A, False",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "A, A, A",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": "A, A, A, A, A, E, 0.0, False",
    "aten::_scaled_dot_product_flash_attention_backward": "A, A, A, A, A, E, None, None, 16, 16, 0.0, False, L, L",
    "aten::_scaled_dot_product_efficient_attention_backward": "A, A, A, A, None, A, E, L, L, 0.0, [True] * 4",
    "aten::nll_loss_forward": "M, R, None, 1, -100",
    "aten::nll_loss_backward": "N, M, R, None, 1, -100, N",
    "aten::cat": "[M, M]",
    "aten::index.Tensor": "M, [None, L[0]]",
    "aten::index_select": "M, 0, R",
    "aten::index_put_": "M, [None, R], M + 1",
    "aten::index_copy_": "M, 0, R, M + 1",
    "aten::embedding": "M, L",
    "aten::gather": "M, 0, L",
    "aten::slice_scatter": "M, M[:32], 0, 0, 32",
    "aten::repeat": "M, [2, 1]",
    "aten::full_like": "M, 2",
    "aten::new_empty": "M, [64, 64]",
    "aten::new_zeros": "M, [64, 64]",
    "aten::_local_scalar_dense": "M[:1, :1]",
    "aten::constant_pad_nd": "M, [1, 1]",
    "aten::threshold_backward": "M, M, 0",
    "aten::_softmax_backward_data": "M, M, 1, torch.float32",
    "aten::_log_softmax_backward_data": "M, M, 1, torch.float32",
    "aten::native_layer_norm_backward": "M, M, [64], M[:, :1], M[:, 1:2], M[0], M[1], [True, True, True]",
    "aten::native_dropout_backward": "M, B, 2.0",
    "aten::embedding_dense_backward": "M, R, 64, -1, False",
    "aten::slice_backward": "M, [128, 64], 0, 0, 64, 1",
    "aten::select_backward": "M, [2, 64, 64], 0, 1",
}
# Their kernels are of CUDA; here they fail behind the announcement, both ways alike.
NO_CPU_KERNEL = {
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention_backward",
    "aten::_scaled_dot_product_efficient_attention_backward",
    "aten::cudnn_batch_norm",
    "aten::cudnn_batch_norm_backward",
}
EXPECTED = {"aten::mm", "aten::addmm", "aten::add.Tensor", "aten::mul.Tensor", "aten::copy_", "aten::cat", "aten::silu"}


def tensors():
    """The paged tensors that samples name."""
    matrix = torch.rand(SIDE, SIDE) + 0.5
    return {
        "torch": torch,
        "M": matrix,
        "L": (matrix * 40).long(),
        "R": torch.arange(SIDE).repeat(8)[::8].contiguous() % SIDE,
        "B": matrix > 1,
        "C": torch.rand(2, SIDE, SIDE),
        "I": torch.rand(2, 4, 32, 32),
        "J": torch.zeros(2, 4, 16, 16, dtype=torch.int64),
        "S": torch.rand(2, 4, 16, 16),
        "K": torch.rand(4, 4, 3, 3),
        "P": torch.rand(SIDE, 4)[0],
        "Q": torch.rand(SIDE, 4)[1] + 0.5,
        "A": torch.rand(2, 4, 16, 16),
        "E": torch.rand(2, 4, 16),
        "N": (matrix + 1)[0, 0],
    }


def argument_of(type_name, index):
    """A value for an argument that the sample does not name."""
    known = {"Tensor": "M", "number": "2", "List[Tensor]": "[M, M]", "Optional[Tensor]": "M", "Optional[number]": "0.5"}
    return known.get(type_name, "None" if type_name.startswith("Optional") else f"'argument {index}: {type_name}'")


def sample(name, overload):
    """The arguments as text."""
    if name in SAMPLES:
        return SAMPLES[name]
    wanted = [a for a in overload._schema.arguments if not a.has_default_value() or "out" in a.name]
    texts = [argument_of(str(a.type), i) for i, a in enumerate(wanted)]
    return ", ".join(f"{a.name}={text}" if a.kwarg_only else text for a, text in zip(wanted, texts))


def kinds(matrix):
    """Tensors of other kinds than a whole paged one, to be put into every place of an operator in turn."""
    yield "a view", matrix[3:40, 5:9]
    yield "transposed", matrix.t()
    yield "expanded", matrix[2].expand(SIDE, SIDE)
    yield "small", torch.rand(2, 2)
    yield "empty", matrix[:0]
    yield "sparse", (matrix * (matrix > 0.6)).to_sparse()
    yield "sparse rows", (matrix * (matrix > 0.6)).to_sparse_csr()
    yield "nested", torch.nested.nested_tensor([torch.rand(40, 40), torch.rand(20, 40)])
    yield "meta", torch.empty(SIDE, SIDE, device="meta")


def parse(text, values):
    """(args, kwargs) of an argument list."""
    return eval(f"(lambda *args, **kwargs: (args, kwargs))({text})", values)  # our own table


def replaced(args, place, tensor):
    """The arguments with another tensor at one place; None where no tensor stands there."""
    args = list(args)
    if isinstance(args[place], torch.Tensor):
        args[place] = tensor
    elif isinstance(args[place], list) and any(isinstance(a, torch.Tensor) for a in args[place]):
        args[place] = [tensor if isinstance(a, torch.Tensor) else a for a in args[place]]
    else:
        return None
    return args


def announced(setup, typed, refuses, overload, args, kwargs):
    """What the engine was told during one call, and how the call ended."""
    assert setup.library.tierpage_torch_set_option(b"typed", typed) == 0
    setup.engine.fake_set_refuses(refuses)
    setup.engine.fake_start_log()
    torch.manual_seed(3)
    try:
        overload(*args, **kwargs)
        end = "returned"
    except Exception as error:  # any end will do, if it is the same both ways
        end = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        setup.engine.fake_set_refuses(0)
        setup.library.tierpage_torch_set_option(b"typed", 1)
    return setup.engine.fake_log().decode(), end


def compare(setup, name, what, overload, args, kwargs, refuses=0):
    """Both ways; what the boxed call announced and how it ended. ``refuses``: the engine refuses all, so no kernel runs."""
    boxed = announced(setup, 0, refuses, overload, args, kwargs)
    typed = announced(setup, 1, refuses, overload, args, kwargs)
    assert typed == boxed, f"{name}, {what}:\ntyped {typed[1]}\n{typed[0]}\nboxed {boxed[1]}\n{boxed[0]}"
    return boxed


def check_operator(setup, name):
    """One operator over all kinds of arguments; how many calls were compared."""
    base, _, overload_name = name.removeprefix("aten::").partition(".")
    overload = getattr(getattr(torch.ops.aten, base), overload_name or "default")
    text = sample(name, overload)
    args, kwargs = parse(text, tensors())
    log, end = compare(setup, name, text, overload, args, kwargs)
    assert "begin " in log, f"{name}({text}) announced nothing: {end}"
    assert (end == "returned") != (name in NO_CPU_KERNEL), f"{name}({text}): {end}"
    calls = 1
    for place in range(len(args)):
        for kind, tensor in kinds(torch.rand(SIDE, SIDE) + 0.5):
            args, kwargs = parse(text, tensors())
            other = replaced(args, place, tensor)
            if other is None:
                continue
            # Many kernels do not look at what they are given: none runs.
            compare(setup, name, f"{text} with argument {place} {kind}", overload, other, kwargs, refuses=1)
            calls += 1
    return calls


def check_typed_kernels(setup):
    """All of them, with and without the hook of torch 2.13."""
    names = setup.library.tierpage_torch_typed_operators().decode().split()
    assert set(names) >= EXPECTED, EXPECTED - set(names)
    # The fused norm is made of others where torch has no CUDA, and then nobody intercepts it.
    assert set(SAMPLES) - set(names) <= {"aten::_fused_rms_norm"}, set(SAMPLES) - set(names)
    calls = 0
    with setup, torch.inference_mode():
        args = (torch.rand(2, SIDE, SIDE), torch.rand(SIDE, SIDE))
        log, _ = compare(setup, "linear", "3 dimensions", torch.nn.functional.linear, args, {})
        assert log.count("begin ") == 1, f"linear is made of matmul, and that of mm, which alone announces:\n{log}"
        for name in names:
            calls += check_operator(setup, name)
    print(f"ok  {len(names)} typed kernels announce what boxed ones do, in {calls} calls", flush=True)
