"""prune and prune_padded as a whole."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import golden, inputs, judge, spec

prune = torch.ops.fastvid.prune


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", golden.NAMES)
def test_golden(name, device, dtype):
    vector = golden.load(name)
    tokens = vector.tokens.to(device, dtype)
    rows, indices, frame_counts = prune(
        tokens,
        vector.saliency.to(device),
        vector.frame_features.to(device, dtype),
        **vector.config.to_kwargs(),
    )
    assert indices.tolist() == vector.kept_index.tolist()
    assert frame_counts.tolist() == torch.bincount(indices.cpu() // tokens.shape[1], minlength=len(tokens)).tolist()
    source = tokens.flatten(0, 1)[indices].float().cpu()
    unchanged = (vector.kept_tokens == source).all(1)
    assert judge.same_bits(rows.cpu()[unchanged], source[unchanged].to(dtype))
    if dtype == torch.float32:
        torch.testing.assert_close(rows.cpu(), vector.kept_tokens, rtol=1e-5, atol=1e-6)
    else:
        assert judge.check_rows(rows.cpu(), vector.kept_tokens.double(), 1e-5).all()


@pytest.mark.parametrize("name", golden.NAMES)
def test_golden_segments(name, device):
    vector = golden.load(name)
    ids, _ = torch.ops.fastvid.segment(vector.frame_features.to(device), **vector.config.to_kwargs("segment"))
    assert torch.bincount(ids.cpu()).tolist() == vector.segment_sizes


def judged(case: inputs.Case, label="") -> int:
    args, _ = case.arguments()
    try:
        return judge.check_prune(*args, case.config, case.run())
    except AssertionError as error:
        raise AssertionError(f"{label} tokens {tuple(case.tokens.shape)}, {case.config}: {error}") from error


@pytest.mark.parametrize("seed", range(60))
def test_float64_equals_the_plain_loops(seed):
    case = inputs.random_case(seed, dtype=torch.float64, most_frames=9, most_tokens=14, most_channels=64)
    rows, indices, frame_counts = case.run()
    features = None if case.frame_features is None else case.frame_features.numpy()
    want = spec.prune(case.tokens.numpy(), case.saliency.double().numpy(), features, case.cu_frames, case.config)
    assert indices.tolist() == want[1]
    assert frame_counts.tolist() == want[2]
    torch.testing.assert_close(rows, torch.from_numpy(want[0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_random_against_float64(device, dtype):
    cases, most_tokens = (80, 300) if device == "cuda" else (25, 80)
    doubts = 0
    for seed in range(1000, 1000 + cases):
        doubts += judged(inputs.random_case(seed, device, dtype, most_tokens=most_tokens), f"seed {seed}")
    assert doubts <= cases // 10


ONE_SEGMENT = {"segment_threshold": -2.0, "min_segments": 1}
SHAPES = {
    "one_token": ((1, 1, 32), {}),
    "one_frame": ((1, 64, 40), {}),
    "odd_channels": ((6, 50, 131), {}),
    "few_channels": ((6, 20, 7), {"features": 16}),
    "many_channels": ((4, 40, 8192), {"retention_ratio": 0.2}),
    "over_a_thousand_channels": ((5, 60, 1201), {"retention_ratio": 0.2, "layout": "wide_rows"}),
    "576_tokens": ((3, 576, 96), {"retention_ratio": 0.15}),
    "729_tokens": ((3, 729, 40), {"retention_ratio": 0.15, "min_segments": 1}),
    "1024_tokens": ((2, 1024, 64), ONE_SEGMENT),
    "most_centers": ((4, 130, 64), {**ONE_SEGMENT, "retention_ratio": 0.95, "context_ratio": 1.0}),
    "65_centers_a_frame": ((5, 130, 48), {**ONE_SEGMENT, "retention_ratio": 0.5, "context_ratio": 1.0}),
    "300_centers_a_frame": ((2, 600, 32), {**ONE_SEGMENT, "retention_ratio": 0.5, "context_ratio": 1.0}),
    "single_frame_segments": ((50, 30, 32), {"segment_threshold": 2.0}),
    # Frames that are their segment's only anchor frame, where that is expected.
    "one_anchor_a_segment": ((8, 196, 72), {}),
    "one_anchor_of_many_centers": ((32, 600, 48), {"anchor_stride": 16}),
    "one_anchor_and_none": ((12, 60, 40), {"thin_threshold": 0.95, "context_ratio": 0.0}),
    "many_frames": ((700, 8, 32), {"retention_ratio": 0.4}),
    "all_neighbors": ((6, 100, 64), {"num_neighbors": 2**40}),
    "long_stride": ((40, 20, 32), {**ONE_SEGMENT, "anchor_stride": 2**40}),
    "all_thinned": ((40, 20, 32), {"thin_threshold": -2.0, "retention_ratio": 0.3}),
    "none_thinned": ((40, 20, 32), {"thin_threshold": 2.0, "retention_ratio": 0.3}),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_shapes_against_float64(device, dtype, name):
    shape, kwargs = SHAPES[name]
    assert judged(inputs.make_case(*shape, device=device, dtype=dtype, seed=len(name), **kwargs)) <= 1


@pytest.mark.parametrize("anchor_stride", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["default", "drop", "thin"])
def test_segment_with_hundreds_of_anchor_frames(device, anchor_stride, mode):
    more = {"default": {}, "drop": {"spread_remainder": False}, "thin": {"thin_threshold": 0.95}}[mode]
    config = {"anchor_stride": anchor_stride, "retention_ratio": 0.4, "context_ratio": 0.7, **ONE_SEGMENT, **more}
    assert judged(inputs.make_case(600, 8, 32, device=device, seed=anchor_stride, **config)) <= 2


def test_one_channel(device):
    """Values whose cosines, distances and densities float32 computes as float64 does: no choice may differ."""
    case = inputs.make_case(9, 30, 1, retention_ratio=0.3, min_segments=2)
    case.tokens = inputs.exact_values(9, 30, 1)
    want = inputs.Case(case.tokens.double(), case.saliency, case.frame_features.double(), None, case.config).run()
    case.tokens, case.saliency = case.tokens.to(device), case.saliency.to(device)
    case.frame_features = case.frame_features.to(device)
    got = case.run()
    assert got[1].tolist() == want[1].tolist()
    torch.testing.assert_close(got[0].double().cpu(), want[0], rtol=1e-6, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("shape", "kwargs"),
    [
        ((32, 196, 3584), {"dtype": torch.bfloat16}),
        ((32, 196, 3584), {"dtype": torch.float16, "spread_remainder": False, "merge_centers": True}),
        ((16, 256, 1280), {"retention_ratio": 0.27, "thin_threshold": 0.95, "segment_threshold": 0.84}),
        ((4096, 4, 16), {"retention_ratio": 0.5, "cu_frames": [0, 1, 1, 2000, 4096]}),
        ((2, 4096, 32), {"retention_ratio": 0.01, "min_segments": 1}),
    ],
    ids=str,
)
def test_large_shapes_against_float64(shape, kwargs):
    assert judged(inputs.make_case(*shape, device="cuda", **kwargs)) <= 2


@pytest.mark.parametrize("layout", inputs.LAYOUTS)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_layouts(device, dtype, layout):
    case = inputs.make_case(7, 45, 72, device=device, dtype=dtype, seed=5, retention_ratio=0.3, min_segments=3)
    want = case.run()
    case.tokens = inputs.laid_out(case.tokens, layout)
    case.saliency = inputs.laid_out(case.saliency[None], layout)[0]
    case.frame_features = inputs.laid_out(case.frame_features[None], layout)[0]
    got = case.run()
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[2], want[2])
    if device == "cuda":
        assert judge.same_bits(got[0], want[0])
    else:
        torch.testing.assert_close(got[0], want[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_saliency_of_any_dtype(device, dtype):
    """As numbers, whatever their dtype, with NaN last and ties by the lower index."""
    case = inputs.make_case(4, 40, 32, device=device, retention_ratio=0.5, context_ratio=0.0)
    case.saliency = (case.saliency * 16).round().to(dtype)
    case.saliency[1, ::3] = torch.nan
    case.saliency[2] = torch.nan
    case.saliency[3, 5], case.saliency[3, 7:9] = torch.inf, -torch.inf
    _, indices, _ = case.run()
    want = [f * 40 + t for f, row in enumerate(case.saliency.tolist()) for t in spec.top(row, 20)]
    assert indices.tolist() == want


# ---- several videos ------------------------------------------------------------------------------------------------

MODES = {
    "default": {},
    "onevision": {"spread_remainder": False, "merge_centers": True},
    "qwen": {"thin_threshold": 0.95, "segment_threshold": 0.84},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_packed_videos_against_one_by_one(device, dtype, mode):
    cu_frames = [0, 5, 5, 6, 17, 30]
    case = inputs.make_case(30, 49, 64, device=device, dtype=dtype, cu_frames=cu_frames, **MODES[mode])
    rows, indices, frame_counts = case.run()
    parts = []
    for begin, end in itertools.pairwise(cu_frames):
        args = [x[begin:end] for x in (case.tokens, case.saliency, case.frame_features)]
        alone = prune(*args, **case.config.to_kwargs())
        parts.append((alone[0], alone[1] + begin * 49, alone[2]))
    want = [torch.cat(part) for part in zip(*parts)]
    assert torch.equal(indices, want[1])
    assert torch.equal(frame_counts, want[2])
    error = judge.SUM_ERROR * case.tokens.double().abs().amax()
    assert judge.check_rows(rows, want[0].double(), error + (want[0].double().abs() * torch.finfo(dtype).eps)).all()


@pytest.mark.parametrize("bounds", [[0, 5, 5, 6, 30], [0, 0, 30], [0, 30, 30, 30], list(range(31))], ids=str)
def test_cu_frames_of_any_kind(device, bounds):
    case = inputs.make_case(30, 25, 32, device=device, seed=2)
    results = []
    for dtype in (torch.int32, torch.int64):
        for place in {"cpu", device}:
            case.cu_frames = torch.tensor(bounds, dtype=dtype, device=place)
            results.append(case.run())
    case.cu_frames = torch.tensor(bounds)
    assert judged(case) == 0
    assert all(judge.same_bits(got, want) for result in results for got, want in zip(result, results[0]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["token", "frame", "video", "features"])
@pytest.mark.parametrize("mode", MODES)
def test_bad_values_stay_in_their_video(device, bad, where, mode):
    cu_frames = [0, 9, 20, 30]
    case = inputs.make_case(30, 36, 48, device=device, cu_frames=cu_frames, retention_ratio=0.25, **MODES[mode])
    if where != "features":
        case.frame_features = None
    want = case.run()
    if where == "token":
        case.tokens[12, 3, 5] = bad
    elif where == "frame":
        case.tokens[12] = bad
    elif where == "video":
        case.tokens[9:20] = bad
    else:
        case.frame_features[12] = bad
    got = case.run()
    for _, indices, frame_counts in (got, want):
        assert ((indices >= 0) & (indices < 30 * 36)).all()
        assert torch.equal(frame_counts, torch.bincount(indices // 36, minlength=30).int())
    others = [((result[1] // 36 < 9) | (result[1] // 36 >= 20)).nonzero().flatten() for result in (got, want)]
    assert torch.equal(got[1][others[0]], want[1][others[1]])
    assert judge.same_bits(got[0][others[0]], want[0][others[1]])


# ---- prune_padded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("cu_frames", [None, [0, 3, 24]], ids=str)
def test_padded_equals_prune(device, mode, dtype, cu_frames):
    case = inputs.make_case(
        24, 49, 36, device=device, dtype=dtype, cu_frames=cu_frames, retention_ratio=0.5, **MODES[mode]
    )
    rows, indices, frame_counts = case.run()
    padded_rows, padded_indices, padded_counts = case.run(torch.ops.fastvid.prune_padded)
    kept = len(indices)
    assert padded_rows.shape == (24 * 24, 36)
    assert padded_indices.shape == (24 * 24,)
    assert judge.same_bits(padded_rows[:kept], rows)
    assert torch.equal(padded_indices[:kept], indices)
    assert torch.equal(padded_counts, frame_counts)
    assert (padded_rows[kept:] == 0).all()
    assert (padded_indices[kept:] == -1).all()
    assert kept < 24 * 24 or mode == "default"


# ---- memory, streams, graphs ---------------------------------------------------------------------------------------


def poison(device: str) -> None:
    """Leaves memory full of ones where the next allocations may land."""
    held = [torch.full((2**power,), 0xFF, dtype=torch.uint8, device=device) for power in range(6, 25)]
    del held


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("op", ["prune", "prune_padded"])
def test_repeats_bit_for_bit(device, mode, dtype, op):
    case = inputs.make_case(12, 70, 90, device=device, dtype=dtype, retention_ratio=0.3, **MODES[mode])
    run = getattr(torch.ops.fastvid, op)
    want = case.run(run)
    for _ in range(5):
        poison(device)
        assert all(map(judge.same_bits, case.run(run), want))


def test_arguments_are_left_alone(device):
    case = inputs.make_case(12, 40, 30, device=device, cu_frames=[0, 5, 12])
    args, _ = case.arguments()
    before = [x.clone() for x in args]
    case.run()
    assert all(map(judge.same_bits, args, before))


@pytest.mark.cuda
@pytest.mark.parametrize("mode", MODES)
def test_second_stream(mode):
    """On a stream that is still to make its inputs when prune is called."""
    case = inputs.make_case(12, 70, 96, device="cuda", dtype=torch.bfloat16, **MODES[mode])
    want = case.run()
    source = case.tokens.clone()
    case.tokens = torch.full_like(source, torch.nan)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        case.tokens.copy_(source)
        got = case.run()
    stream.synchronize()
    assert all(map(judge.same_bits, got, want))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize(
    ("op", "mode"), [("prune", "default"), ("prune_padded", "qwen"), ("prune_padded", "onevision")]
)
@pytest.mark.parametrize("bounds", ["none", "host", "device"])
def test_cuda_graph(op, mode, dtype, bounds):
    """Captured once, replayed on other tokens, saliencies, features and boundaries."""
    cases = [
        inputs.make_case(20, 50, 68, device="cuda", dtype=dtype, seed=seed, **MODES[mode]) for seed in (1, 20, 300)
    ]
    cuts = [[0, 8, 20], [0, 8, 20], [0, 8, 20]] if bounds == "host" else [[0, 8, 20], [0, 19, 20], [0, 0, 20]]
    for case, cut in zip(cases, cuts):
        case.cu_frames = None if bounds == "none" else torch.tensor(cut, device="cpu" if bounds == "host" else "cuda")
    run = getattr(torch.ops.fastvid, op)
    wants = [case.run(run) for case in cases]
    static = cases[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = static.run(run)
    for case, want in [*zip(cases[1:], wants[1:]), (cases[1], wants[1])]:
        static.tokens.copy_(case.tokens)
        static.saliency.copy_(case.saliency)
        static.frame_features.copy_(case.frame_features)
        if bounds == "device":
            static.cu_frames.copy_(case.cu_frames)
        for x in got:
            x.fill_(-7)
        poison("cuda")
        graph.replay()
        assert all(map(judge.same_bits, got, want))


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("op", "mode"), [("prune", "default"), ("prune_padded", "qwen"), ("prune_padded", "onevision")]
)
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_no_sync(op, mode, place):
    case = inputs.make_case(20, 50, 68, device="cuda", cu_frames=[0, 8, 20], **MODES[mode])
    case.cu_frames = case.cu_frames.to(place)
    run = getattr(torch.ops.fastvid, op)
    case.run(run)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(400_000_000)
        asleep = torch.cuda.Event()
        asleep.record()
        case.run(run)
        assert not asleep.query(), "the call waited for the GPU"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    "bounds",
    [[0, 12, 7, 20], [-5, 10, 20], [0, 10, 900], [9, 10, 11], [0, 0, 0], [20, 20, 20], [30, 20, 10], [-9, -8, -7]],
    ids=str,
)
@pytest.mark.parametrize("mode", MODES)
def test_wrong_boundaries_on_the_device_stay_in_bounds(bounds, dtype, mode):
    case = inputs.make_case(20, 50, 32, device="cuda", **MODES[mode])
    want = case.run()
    case.cu_frames = torch.tensor(bounds, dtype=dtype, device="cuda") * (1 if dtype == torch.int32 else 2**20)
    for op in (prune, torch.ops.fastvid.prune_padded):
        rows, indices, frame_counts = case.run(op)
        assert rows.isfinite().all()
        assert ((indices >= -1) & (indices < 20 * 50)).all()
        assert ((frame_counts >= 0) & (frame_counts <= 50)).all()
    case.cu_frames = None
    assert all(map(judge.same_bits, case.run(), want))
