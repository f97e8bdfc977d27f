"""prune_embeddings against plain loops over columns."""

from __future__ import annotations

import pytest
import torch

from fastvid_ext import PruneConfig, prune, prune_embeddings, retained_count
from fastvid_ext.prompt_layout import NEWLINES, num_newlines

CONFIGS = {
    "default": PruneConfig(retention_ratio=0.2),
    "onevision": PruneConfig.llava_onevision(retention_ratio=0.3),
    "qwen": PruneConfig.qwen2_5_vl(retention_ratio=0.27),
}
GRID = (9, 4, 5)


def gaussian(*shape, seed=0, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def offsets(grid, newline):
    """Places of the tokens, and of the newlines with the tokens that each stands behind, among a video's columns."""
    frames, height, width = grid
    tokens, newlines, place = [], [], 0
    for _frame in range(frames):
        for _row in range(height):
            for _ in range(width):
                tokens.append(place)
                place += 1
            if newline == "grid":
                newlines.append((place, range(len(tokens) - width, len(tokens))))
                place += 1
        if newline == "frame":
            newlines.append((place, range(len(tokens) - height * width, len(tokens))))
            place += 1
    if newline == "one":
        newlines.append((place, range(len(tokens))))
    return tokens, newlines


def expected_row(row, spans, newline, config, mask=None):
    """[(column, embedding)] of a pruned row; spans: (columns, grid, saliency, features)."""
    kept = {i: row[i] for i in range(len(row)) if mask is None or mask[i]}
    for columns, grid, saliency, features in spans:
        tokens, newlines = offsets(grid, newline)
        x = row[torch.tensor([columns[i] for i in tokens])].unflatten(0, (grid[0], -1))
        result = prune(x, saliency, features, config=config)
        chosen = dict(zip(result.indices.tolist(), result.tokens))
        for i, place in enumerate(tokens):
            if i in chosen:
                kept[columns[place]] = chosen[i]
            else:
                del kept[columns[place]]
        for place, behind in newlines:
            if newline != "one" and not any(i in chosen for i in behind):
                del kept[columns[place]]
    return sorted(kept.items())


def check(result, rows, padding_side="left"):
    embeddings, pruning = result
    length = max(map(len, rows))
    assert embeddings.shape[:2] == pruning.columns.shape == (len(rows), length)
    for got, columns, row in zip(embeddings, pruning.columns.tolist(), rows):
        padding = [-1] * (length - len(row))
        wanted = [column for column, _ in row]
        assert columns == (padding + wanted if padding_side == "left" else wanted + padding)
        places = [i for i, column in enumerate(columns) if column >= 0]
        assert torch.equal(got[places], torch.stack([vector for _, vector in row]))
    assert pruning.padded == any(len(row) < length for row in rows)


@pytest.mark.parametrize("features", [None, 7])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("newline", NEWLINES)
def test_one_video(newline, name, features):
    config, (frames, height, width) = CONFIGS[name], GRID
    size = frames * height * width + num_newlines(GRID, newline)
    embeddings = gaussian(1, size + 9, 16)
    saliency = gaussian(frames, height * width, seed=1)
    features = None if features is None else gaussian(frames, features, seed=2)
    result = prune_embeddings(
        embeddings,
        [(0, 4, 4 + size)],
        grid=GRID,
        newline=newline,
        saliency=saliency,
        frame_features=features,
        config=config,
    )
    check(result, [expected_row(embeddings[0], [(range(4, 4 + size), GRID, saliency, features)], newline, config)])
    video = result[1].videos[0]
    alone = prune(
        embeddings[0, 4 : 4 + size][offsets(GRID, newline)[0]].unflatten(0, (frames, -1)), saliency, features,
        config=config,
    )  # fmt: skip
    assert torch.equal(video.indices, alone.indices)
    assert torch.equal(video.frame_counts, alone.frame_counts)
    assert video.tokens_before == frames * height * width
    assert video.tokens_after == len(alone.indices) == result[1].tokens_after
    assert video.segments.tolist() == sorted(video.segments.tolist())
    assert len(video.segments.unique()) >= config.min_segments


def batch_of_three():
    """Two videos, none, and one whose frames have text between them; left padding of 0, 250 and 31."""
    grids = [(9, 4, 5), (3, 4, 4), (6, 5, 5)]
    first, second = range(2, 2 + 180), range(190, 190 + 48)
    between = [37 + frame * 27 + i for frame in range(6) for i in range(25)]
    length = 260
    embeddings = gaussian(3, length, 16, seed=3)
    mask = torch.ones(3, length, dtype=torch.long)
    mask[1, :250] = 0
    mask[2, :31] = 0
    saliency = [gaussian(frames, height * width, seed=i) for i, (frames, height, width) in enumerate(grids)]
    spans = [(0, 2, 182), (0, 190, 238), (2, torch.tensor(between))]
    rows = [
        [(first, grids[0], saliency[0], None), (second, grids[1], saliency[1], None)],
        [],
        [(between, grids[2], saliency[2], None)],
    ]
    return embeddings, mask, spans, grids, saliency, rows


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_batch(name, padding_side):
    embeddings, mask, spans, grids, saliency, rows = batch_of_three()
    result = prune_embeddings(
        embeddings,
        spans,
        grid=grids,
        saliency=saliency,
        config=CONFIGS[name],
        attention_mask=mask,
        padding_side=padding_side,
    )
    wanted = [expected_row(embeddings[i], rows[i], "none", CONFIGS[name], mask[i]) for i in range(3)]
    check(result, wanted, padding_side)
    pruning = result[1]
    assert [video.row for video in pruning.videos] == [0, 0, 2]
    positions = (mask.cumsum(1) - 1).expand(3, -1, -1) * torch.tensor([1, 10, 100])[:, None, None]
    gathered = pruning.gather(positions)
    assert gathered.shape == (3, *pruning.columns.shape)
    for i in range(3):
        here = pruning.mask[i]
        assert torch.equal(gathered[:, i, here], positions[:, i, pruning.columns[i, here]])
    assert torch.equal(pruning.gather(torch.arange(260)[None]), pruning.columns.clamp_min(0))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("newline", ["none", "grid"])
def test_fixed_length(name, newline):
    """What a call of another length keeps, and padding, as many columns as shapes tell."""
    frames, height, width = GRID
    size = frames * height * width + num_newlines(GRID, newline)
    embeddings, config = gaussian(2, size + 9, 16), CONFIGS[name]
    arguments = {"grid": GRID, "newline": newline, "config": config}
    spans = [(0, 4, 4 + size), (1, 9, 9 + size)]
    tight, exact = prune_embeddings(embeddings, spans, **arguments)
    padded, pruning = prune_embeddings(embeddings, spans, fixed_length=True, **arguments)
    assert padded.shape[1] == 9 + retained_count(frames, height * width, config) + num_newlines(GRID, newline)
    for row in range(2):
        assert torch.equal(padded[row, pruning.mask[row]], tight[row, exact.mask[row]])
        assert torch.equal(pruning.columns[row, pruning.mask[row]], exact.columns[row, exact.mask[row]])
        assert pruning.videos[row].tokens_after == exact.videos[row].tokens_after
    assert pruning.padded == (name != "default" or newline == "grid")


@pytest.mark.parametrize("mask", [None, "left"])
def test_nothing_to_prune(mask):
    embeddings = gaussian(2, 200, 16)
    if mask is not None:
        mask = torch.ones(2, 200)
        mask[1, :5] = 0
    arguments = {"grid": GRID, "attention_mask": mask}
    whole, pruning = prune_embeddings(embeddings, [(0, 7, 187)], config=PruneConfig(retention_ratio=1.0), **arguments)
    assert whole is embeddings
    assert torch.equal(pruning.mask, torch.ones(2, 200, dtype=torch.bool) if mask is None else mask.bool())
    assert pruning.tokens_after == pruning.tokens_before == 180
    assert pruning.videos[0].indices.tolist() == list(range(180))
    assert prune_embeddings(embeddings, [], **arguments)[0] is embeddings


def test_norm_is_the_length_of_the_tokens():
    embeddings = gaussian(1, 180, 16)
    config = PruneConfig(retention_ratio=0.2, context_ratio=0.0)
    _, pruning = prune_embeddings(embeddings, [(0, 0, 180)], grid=GRID, config=config)
    longest = embeddings[0].norm(dim=1).view(9, 20).topk(4).indices.sort(1).values + torch.arange(9)[:, None] * 20
    assert torch.equal(pruning.videos[0].indices, longest.flatten())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs_embeds": torch.zeros(200, 16)}, r"inputs_embeds: got shape \(200, 16\), want \(B, L, D\)"),
        ({"newline": "two"}, "newline: got 'two', want one of none, one, grid, frame"),
        ({"padding_side": "top"}, "padding_side: got 'top', want 'left' or 'right'"),
        ({"attention_mask": torch.ones(2, 9)}, r"attention_mask: got shape \(2, 9\), want \(B, L\) = \(2, 200\)"),
        ({"video_spans": [(0, 0, 179)]}, r"video_spans\[0\]: got 179 columns, want 180: T \* H \* W = 9 \* 4 \* 5"),
        ({"newline": "grid"}, r"video_spans\[0\]: got 180 columns, want 216: .* and 36 newlines \(newline='grid'\)"),
        ({"video_spans": [(2, 0, 180)]}, r"video_spans\[0\]: got row 2, want a row of inputs_embeds, 0 to 1"),
        ({"video_spans": [(0, 30, 210)]}, r"video_spans\[0\]: got columns 30 to 210, want a range within 0 to 200"),
        ({"video_spans": [(0, torch.tensor([3, 2]))]}, r"video_spans\[0\]: got columns \[3, 2\], want them ascending"),
        (
            {"video_spans": [(0, 0, 180), (0, torch.arange(20, 200))]},
            r"video_spans\[1\]: got columns that another video takes",
        ),
        ({"grid": [(9, 4, 5), (9, 4, 5)]}, "grid: got 2 for 1 videos, want one for all or one for each"),
        ({"grid": (9, 0, 5)}, r"grid: got \(9, 0, 5\), want \(T, H, W\)"),
        ({"saliency": "attention"}, "saliency: got 'attention', want 'norm' or one tensor for each video"),
        ({"saliency": torch.ones(9, 19)}, r"saliency: got shape \(9, 19\) for video_spans\[0\], want .* \(9, 20\)"),
        ({"saliency": [torch.ones(9, 20)] * 2}, "saliency: got 2 for 1 videos, want one for each"),
        (
            {"frame_features": torch.ones(8, 3)},
            r"frame_features: got shape \(8, 3\) for .*, want \(T, C\) = \(9, any\)",
        ),
    ],
)
def test_refused(changed, message):
    arguments = {"inputs_embeds": torch.zeros(2, 200, 16), "video_spans": [(0, 0, 180)], "grid": GRID} | changed
    with pytest.raises(ValueError, match=f"^{message}"):
        prune_embeddings(**arguments)


def test_gather_names_a_wrong_length():
    _, pruning = prune_embeddings(gaussian(1, 200, 16), [(0, 0, 180)], grid=GRID)
    with pytest.raises(ValueError, match=r"^values: got shape \(1, 199\), want \(..., 200\)"):
        pruning.gather(torch.zeros(1, 199))


@pytest.mark.cuda
@pytest.mark.parametrize("newline", NEWLINES)
@pytest.mark.parametrize("name", CONFIGS)
def test_on_cuda_as_on_cpu(name, newline):
    frames, height, width = GRID
    size = frames * height * width + num_newlines(GRID, newline)
    embeddings, saliency = gaussian(2, size + 9, 16), [gaussian(frames, height * width, seed=i) for i in range(2)]
    mask = torch.ones(2, size + 9, dtype=torch.long)
    mask[1, :3] = 0
    spans = [(0, 4, 4 + size), (1, 9, 9 + size)]
    arguments = {"grid": GRID, "newline": newline, "config": CONFIGS[name], "saliency": saliency}
    want, plan = prune_embeddings(embeddings, spans, attention_mask=mask, **arguments)
    for device in ("cpu", "cuda"):  # of the mask
        got, pruning = prune_embeddings(embeddings.cuda(), spans, attention_mask=mask.to(device), **arguments)
        assert torch.equal(pruning.columns.cpu(), plan.columns)
        torch.testing.assert_close(got.cpu()[plan.mask], want[plan.mask], rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("name", CONFIGS)
def test_in_a_cuda_graph(name):
    config = CONFIGS[name]
    embeddings = gaussian(2, 200, 16, device="cuda")

    def pruned(x):
        out, pruning = prune_embeddings(
            x, [(0, 4, 184), (1, 9, 189)], grid=GRID, config=config, fixed_length=True
        )  # fmt: skip
        return out, pruning.columns

    pruned(embeddings)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, columns = pruned(embeddings)
    for seed in range(3):
        other = gaussian(2, 200, 16, seed=seed, device="cuda")
        embeddings.copy_(other)
        graph.replay()
        want, want_columns = pruned(other)
        assert torch.equal(columns, want_columns)
        assert torch.equal(out, want)


@pytest.mark.cuda
def test_the_default_mode_does_not_sync():
    embeddings = gaussian(2, 200, 16, device="cuda")
    mask = torch.ones(2, 200, dtype=torch.long)
    mask[1, :5] = 0
    arguments = {"grid": GRID, "config": CONFIGS["default"], "newline": "none"}
    prune_embeddings(embeddings, [(0, 4, 184), (1, 9, 189)], **arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out, _ = prune_embeddings(embeddings, [(0, 4, 184), (1, 9, 189)], **arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.shape == (2, 20 + 36, 16)
