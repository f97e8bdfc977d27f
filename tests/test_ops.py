"""The ops as torch sees them: schemas, fakes, TorchScript, torch.compile, torch.export, dynamic shapes."""

from __future__ import annotations

import shutil

import pytest
import torch
from helpers import inputs, judge
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

ops = torch.ops.fastvid
DTYPES = {"cpu": [torch.float64, torch.float32, torch.bfloat16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
QWEN = {"retention_ratio": 0.27, "segment_threshold": 0.84, "thin_threshold": 0.95}
ONEVISION = {"spread_remainder": False, "merge_centers": True}


def calls(device: str, dtype=torch.float32) -> dict[str, tuple]:
    """(op, args, kwargs) of calls that reach every op, every optional argument and every mode."""
    tokens = inputs.video(6, 20, 16, seed=1).to(device, dtype)
    saliency = inputs.gaussian(6, 20, seed=2, device=device)
    features = inputs.video(6, 1, 12, seed=3).squeeze(1).to(device, dtype)
    bounds = torch.tensor([0, 2, 6])
    mask = inputs.gaussian(6, 20, seed=4, device=device) > -0.5
    density = ops.knn_density(tokens)
    ids, similarity = ops.segment(features)
    centers = torch.arange(0, 20, 5, device=device).repeat(6, 1)
    prune = (tokens, saliency, features, bounds)
    return {
        "prune": (ops.prune, (tokens, saliency), {}),
        "prune_packed": (ops.prune, prune, {"retention_ratio": 0.5}),
        "prune_packed_on_device": (ops.prune, (*prune[:3], bounds.to(device)), {"min_segments": 2}),
        "prune_onevision": (ops.prune, prune, ONEVISION),
        "prune_qwen": (ops.prune, prune, QWEN),
        "prune_padded": (ops.prune_padded, prune, {}),
        "prune_padded_qwen": (ops.prune_padded, prune, QWEN),
        "segment": (ops.segment, (features,), {}),
        "segment_packed": (ops.segment, (features, bounds), {"min_segments": 2, "threshold": 0.5}),
        "plan": (ops.plan, (ids, similarity, 20), {}),
        "plan_qwen": (ops.plan, (ids, similarity, 20), {"thin_threshold": 0.95, "retention_ratio": 0.3}),
        "knn_density": (ops.knn_density, (tokens,), {}),
        "knn_density_masked": (ops.knn_density, (tokens, mask), {"num_neighbors": 7}),
        "select_peaks": (ops.select_peaks, (tokens, density, 5), {}),
        "select_peaks_masked": (ops.select_peaks, (tokens, density, 5, mask), {}),
        "scatter_merge": (ops.scatter_merge, (tokens, centers), {}),
        "scatter_merge_masked": (
            ops.scatter_merge,
            (tokens, centers, mask),
            {"merge_floor": 0.0, "merge_centers": True},
        ),
    }


NAMES = list(calls("cpu"))


def as_tuple(result) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(device, name):
    op, args, kwargs = calls(device)[name]
    torch.library.opcheck(op.default, args, kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_fakes_agree(device, name):
    for dtype in DTYPES[device]:
        op, args, kwargs = calls(device, dtype)[name]
        real = as_tuple(op(*args, **kwargs))
        with FakeTensorMode(shape_env=ShapeEnv()) as mode:
            fake = [mode.from_tensor(x, static_shapes=True) if isinstance(x, Tensor) else x for x in args]
            shaped = as_tuple(op(*fake, **kwargs))
        for got, want in zip(shaped, real):
            assert (got.dtype, got.device, got.dim()) == (want.dtype, want.device, want.dim())
            for size, real_size in zip(got.shape, want.shape):
                known = isinstance(size, int)
                assert size == real_size if known else name in ("prune_qwen", "prune_onevision")


def default_mode(tokens: Tensor, saliency: Tensor, features: Tensor, bounds: Tensor):
    rows, indices, counts = torch.ops.fastvid.prune(tokens, saliency, features, bounds, retention_ratio=0.3)
    return rows * 2, indices + 1, counts.sum()


def counted_mode(tokens: Tensor, saliency: Tensor, features: Tensor, bounds: Tensor):
    rows, indices, counts = torch.ops.fastvid.prune(tokens, saliency, features, bounds, thin_threshold=0.95)
    return rows * 2, indices + 1, counts.sum()


def padded_mode(tokens: Tensor, saliency: Tensor, features: Tensor, bounds: Tensor):
    rows, indices, counts = torch.ops.fastvid.prune_padded(tokens, saliency, features, bounds, spread_remainder=False)
    return rows * 2, indices + 1, counts.sum()


def stages(tokens: Tensor, saliency: Tensor, features: Tensor, bounds: Tensor):
    ids, similarity = torch.ops.fastvid.segment(features, bounds, min_segments=3)
    salient, context = torch.ops.fastvid.plan(ids, similarity, tokens.size(1), retention_ratio=0.3)
    mask = saliency < 0.8
    density = torch.ops.fastvid.knn_density(tokens, mask, num_neighbors=3)
    centers, score = torch.ops.fastvid.select_peaks(tokens, density, 4, mask)
    merged, assignment, counts = torch.ops.fastvid.scatter_merge(tokens, centers, mask, merge_floor=0.5)
    return salient, context, density, centers, score, merged * 2, assignment, counts


def shapes_for(function) -> list[tuple[int, int]]:
    """(T, N); an int argument such as plan's tokens_per_frame is a constant to torch.compile, so N stays there."""
    return [(6, 20), (11, 20), (9, 20)] if function is stages else [(6, 20), (11, 33), (9, 50)]


FUNCTIONS = [default_mode, counted_mode, padded_mode, stages]


def sample(frames: int, n: int, device: str, seed: int = 0) -> tuple[Tensor, ...]:
    case = inputs.make_case(frames, n, 24, device=device, seed=seed, cu_frames=[0, frames // 2, frames])
    return case.tokens, case.saliency, case.frame_features, case.cu_frames


def same(got, want) -> bool:
    return all(map(judge.same_bits, got, want))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_scripted(device, function):
    scripted = torch.jit.script(function)
    for shape in shapes_for(function):
        args = sample(*shape, device)
        assert same(scripted(*args), function(*args))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(device, function, dynamic):
    """Without a graph break; on CUDA the op by itself down to inductor's kernels, which need a C compiler."""
    torch._dynamo.reset()
    down = device == "cuda" and function is default_mode and shutil.which("cc")
    backend = "inductor" if down else "aot_eager"
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=dynamic):
        for shape in shapes_for(function):
            args = sample(*shape, device)
            assert same(compiled(*args), function(*args))


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, tokens: Tensor, saliency: Tensor, features: Tensor, bounds: Tensor):
        return self.function(tokens, saliency, features, bounds)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_exported(device, function):
    """With frames and tokens per frame left open."""
    frames, n = torch.export.Dim("frames", min=2, max=4096), torch.export.Dim("n", min=12, max=1024)
    both = {0: frames} if function is stages else {0: frames, 1: n}
    shapes = {"tokens": both, "saliency": both, "features": {0: frames}, "bounds": None}
    program = torch.export.export(Module(function), sample(6, 20, device), dynamic_shapes=shapes)
    for shape in shapes_for(function):
        args = sample(*shape, device)
        assert same(program.module()(*args), function(*args))


@pytest.mark.parametrize("ratio", [0.1, 0.29, 0.999, 1.0])
def test_symbolic_size_is_the_real_one(ratio):
    """The number of rows follows from symbolic shapes as the op computes it, truncation included."""

    def count(tokens, saliency):
        return torch.ops.fastvid.prune(tokens, saliency, retention_ratio=ratio)[0].shape[0] + tokens.new_zeros(())

    torch._dynamo.reset()
    compiled = torch.compile(count, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (7, 10, 100, 196):
        tokens = inputs.gaussian(3, n, 8)
        assert int(compiled(tokens, tokens[..., 0])) == 3 * max(1, int(n * ratio))


def test_fake_tensors_are_refused_like_real_ones():
    """Shapes that the op refuses are refused while tracing too, or at the latest when it runs."""
    compiled = torch.compile(default_mode, backend="aot_eager")
    tokens, saliency, features, bounds = sample(6, 20, "cpu")
    with pytest.raises(RuntimeError, match="saliency: got shape"):
        compiled(tokens, saliency[:, 1:], features, bounds)


def test_no_gradient(device):
    """Pruning is not differentiable; its results do not ask for a gradient that they cannot give."""
    tokens = inputs.gaussian(4, 20, 8, device=device).requires_grad_()
    with torch.no_grad():
        rows, indices, _ = ops.prune(tokens, tokens[..., 0], retention_ratio=0.5)
    assert not rows.requires_grad
    tokens.flatten(0, 1)[indices].sum().backward()
    assert tokens.grad.sum() == rows.numel()


def test_schemas_have_the_documented_defaults():
    schema = ops.prune.default._schema
    defaults = {argument.name: argument.default_value for argument in schema.arguments if argument.kwarg_only}
    assert defaults == inputs.PruneConfig().to_kwargs()
    assert [argument.name for argument in schema.returns] == ["tokens", "indices", "frame_counts"]
    assert str(schema).replace("prune(", "prune_padded(", 1) == str(ops.prune_padded.default._schema)
