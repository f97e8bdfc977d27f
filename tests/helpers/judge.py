"""Judges float results: two correct paths may differ on near ties, and nowhere else.

Every choice is checked against float64, taking the earlier choices of the result as given, which are all to be read
off it: a frame's kept tokens that are not its most salient ones are its centres. A choice that differs from float64's
must lie on a near tie: a similarity within 1e-5 of the threshold or of the least similar ones, a gamma or a cosine
within 1e-4, relative, of the last one chosen. A row that merged other tokens than in float64 must be what moving
near-tied tokens gives, to the last bit of its dtype but for the rounding of a float32 sum.

Results of float32 have its range too: a density, a distance or a product that lies below float32's smallest normal
number may count as 0.

The functions return how many choices differ from float64's and raise AssertionError where one is wrong.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fastvid_ext import PruneConfig
from helpers import inputs, spec

SIMILARITY = 1e-5
RELATIVE = 1e-4
MOST_DOUBTS = 10  # choices that are tried both ways
SUM_ERROR = 5e-6  # of a float32 mean, relative to the channel's largest value


class TooManyTiesError(AssertionError):
    """A result differs from float64's where more choices lie on a near tie than can be tried."""


def distance_error(x: Tensor) -> float:
    """Of a squared distance over D of x (n, D), relative to the squared norms. Tensor cores truncate their sums, those
    of float32 after every eight channels, each time by half of the last bit on average.
    """
    return 1e-6 + (2**-24 / 8 if x.dtype == torch.float32 else 1e-9) * x.shape[1]


def tiny(x: Tensor) -> float:
    """What underflow may take from a number that is computed from x: all but float64 is computed in float32."""
    return torch.finfo(x.dtype if x.dtype == torch.float64 else torch.float32).tiny


def sum_error(x: Tensor) -> Tensor:
    """(D,) how far a float32 mean of rows of x (M, D) may be off."""
    return SUM_ERROR * x.double().abs().amax(0) + tiny(x)


def cosines(x: Tensor, y: Tensor, dtype=torch.float64) -> Tensor:
    x, y = x.to(dtype), y.to(dtype)
    return (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)) @ (
        y / y.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    ).transpose(-1, -2)


def check_rows(got: Tensor, want: Tensor, error: Tensor | float) -> Tensor:
    """Which rows of `got` (M, D) are `want` (float64), known to `error`, rounded once."""
    low, high = (want - error).to(got.dtype), (want + error).to(got.dtype)
    return ((low <= got) & (got <= high)).all(-1)


def same_bits(a: Tensor, b: Tensor) -> bool:
    same_kind = a.shape == b.shape and a.dtype == b.dtype
    return same_kind and torch.equal(*(x.contiguous().flatten().view(torch.uint8) for x in (a, b)))


# ---- the stages ----------------------------------------------------------------------------------------------------


def possible_similarities(similarity: list[float], in_float32: list[float], cu_frames, config: PruneConfig):
    """(doubts, segments, similarity) of every way that rounding may cut and thin the videos; float64's own first.

    Where these are too many, float32's own alone; and then an error.
    """
    tau, thin, c = config.segment_threshold, config.thin_threshold, config.min_segments
    exact = spec.segments(similarity, cu_frames, c, tau)
    cuts = {end - 1 for _, end in exact}
    doubtful, demands = [], []
    for begin, end in spec.videos(cu_frames, len(similarity)):
        inner = range(begin, end - 1)
        least = sorted((similarity[i], i) for i in inner)[: min(c - 1, len(inner))]
        last = least[-1][0] if least else -2.0
        near_last = [i for i in inner if least and abs(similarity[i] - last) <= SIMILARITY]
        tie = any(i in cuts for i in near_last) and any(i not in cuts for i in near_last)
        below = [i for i in inner if similarity[i] < last - SIMILARITY]
        for i in inner:
            near_tau = abs(similarity[i] - tau) <= SIMILARITY
            by_rank = tie and i in near_last and similarity[i] >= tau - SIMILARITY
            if i not in below and (near_tau or by_rank):
                doubtful.append(i)
        demands.append((inner, len(least)))
    yield 0, exact, similarity
    thinned = [i for i, s in enumerate(similarity) if thin is not None and abs(s - thin) <= SIMILARITY]
    if not doubtful and not thinned:
        return
    if len(doubtful) + len(thinned) > MOST_DOUBTS:
        segments = spec.segments(in_float32, cu_frames, c, _float32(tau))
        changed = cuts ^ {end - 1 for _, end in segments}
        if changed <= set(doubtful):
            below = [i for i in thinned if in_float32[i] < _float32(thin)]
            nudged = [(-2.0 if i in below else 2.0) if i in thinned else s for i, s in enumerate(similarity)]
            yield len(changed) + sum((i in below) != (similarity[i] < thin) for i in thinned), segments, nudged
        raise TooManyTiesError(f"{len(doubtful)} cuts and {len(thinned)} thinned frames are near ties")
    for cut_flags in itertools.product((False, True), repeat=len(doubtful)):
        now = (cuts - set(doubtful)) | {i for i, cut in zip(doubtful, cut_flags) if cut}
        if any(not _may_be_cut(similarity, [i for i in inner if i in now], least, tau) for inner, least in demands):
            continue
        ends = sorted(i + 1 for i in now)
        for thin_flags in itertools.product((False, True), repeat=len(thinned)):
            nudged = list(similarity)
            for i, below in zip(thinned, thin_flags):
                nudged[i] = -2.0 if below else 2.0
            changed = len(now ^ cuts) + sum(below != (similarity[i] < thin) for i, below in zip(thinned, thin_flags))
            if changed:
                yield changed, list(zip([0] + ends, ends)), nudged


def _float32(x: float) -> float:
    return torch.tensor(x, dtype=torch.float32).item()


def _may_be_cut(similarity, cuts, least, tau):
    by_rank_alone = any(similarity[i] > tau + SIMILARITY for i in cuts)
    return len(cuts) == least if by_rank_alone else len(cuts) >= least


def squared_distances(x: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances over D of x (n, D), and how far float32 may be off."""
    relative, underflow, x = distance_error(x), tiny(x), x.double()
    norms = (x * x).sum(1)
    pair = norms[:, None] + norms
    squared = (pair - 2 * x @ x.T).clamp_min(0).fill_diagonal_(0) / x.shape[1]
    error = relative * pair / x.shape[1] + underflow
    return squared, error.fill_diagonal_(0)


def density_of(squared: Tensor, num_neighbors: int) -> Tensor:
    return (-squared.topk(min(num_neighbors, len(squared)), largest=False).values.mean(1)).exp()


def density_bounds(squared: Tensor, error: Tensor, num_neighbors: int, underflow: float) -> tuple[Tensor, Tensor]:
    low = density_of(squared + error, num_neighbors) * (1 - 1e-6) - underflow
    high = density_of((squared - error).clamp_min(0), num_neighbors) * (1 + 1e-6) + underflow
    return low.clamp_min(0), high


def delta(distance: Tensor, denser: Tensor) -> Tensor:
    """Distance of each token to the nearest that is denser; without one, the largest there is."""
    return torch.minimum(distance.masked_fill(~denser, torch.inf).amin(1), distance.max())


def is_denser(rho: Tensor) -> Tensor:
    """[i, j]: whether token j is denser than token i."""
    index = torch.arange(len(rho), device=rho.device)
    return (rho[None] > rho[:, None]) | ((rho[None] == rho[:, None]) & (index[None] < index[:, None]))


def check_peaks(x: Tensor, chosen: Tensor, num_neighbors: int) -> int:
    """x (n, D): the candidates of one frame; chosen (n,): which are its centres."""
    squared, error = squared_distances(x)
    rho = density_of(squared, num_neighbors)
    exact = rho * delta(squared.sqrt(), is_denser(rho))
    # Bounds of gamma: at least, with the nearest of all tokens that may be denser; at most, of those that surely are.
    low, high = density_bounds(squared, error, num_neighbors, tiny(x))
    may_be = (high[None] >= low[:, None]).fill_diagonal_(False)
    surely = low[None] > high[:, None]
    at_least = low * delta((squared - error).clamp_min(0).sqrt(), may_be) * (1 - RELATIVE / 2) - tiny(x)
    at_most = high * delta((squared + error).sqrt(), surely) * (1 + RELATIVE / 2) + tiny(x)
    count = int(chosen.sum())
    if 0 < count < len(x):
        assert at_most[chosen].min() >= at_least[~chosen].max(), (
            f"a centre with gamma {exact[chosen].min():.6g} was chosen before one with {exact[~chosen].max():.6g}"
        )
    order = (-exact).argsort(stable=True)
    return int((~chosen[order[:count]]).sum())


def first_best(cosine: Tensor) -> Tensor:
    """The most similar centre of each token; of equals the lower one."""
    return (cosine == cosine.amax(1, keepdim=True)).int().argmax(1)


def check_merge(x, centers, mergeable, rows, merge_floor, merge_centers=False, *, error=None, cosine=None) -> int:
    """x (M, D): tokens; centers (C,): their places; mergeable (M,); rows (C, D): what they became."""
    x64, mergeable = x.double(), mergeable.clone()
    if not merge_centers:
        mergeable[centers] = False
    if cosine is None:
        cosine = cosines(x, x[centers])
    if error is None:
        error = sum_error(x)
    best, assignment = cosine.amax(1), first_best(cosine)
    members = mergeable.nonzero().flatten()

    def merged(assignment):
        one_hot = x64.new_zeros(len(members), len(centers))
        one_hot[torch.arange(len(members), device=x.device), assignment[members]] = 1
        counts = one_hot.sum(0)[:, None]
        mean = one_hot.T @ x64[members] / counts.clamp_min(1)
        weight = (1 / (counts + 1)).clamp_min(merge_floor)
        return torch.where(counts > 0, weight * x64[centers] + (1 - weight) * mean, x64[centers])

    right = check_rows(rows, merged(assignment), error)
    if right.all():
        return 0
    # Tokens that may have gone elsewhere, the closest ties first.
    wrong = (~right).nonzero().flatten()
    gap = best[:, None] - cosine
    tied = (mergeable & x.bool().any(1))[:, None] & (gap <= RELATIVE * best.abs()[:, None] + 1e-6)  # 0 is exact
    every = torch.arange(len(x), device=x.device)
    # Where products underflow, more tokens tie than could be tried one by one.
    in_float32 = first_best(cosines(x, x[centers], torch.float32))
    differs = mergeable & (in_float32 != assignment)
    if tied[every, in_float32][differs].all() and check_rows(rows, merged(in_float32), error).all():
        return int(differs.sum())
    tied[every, assignment] = False
    tied &= ~right[None] | ~right[assignment][:, None]
    moves = sorted((gap[t, c].item(), t, c) for t, c in tied.nonzero().tolist())[:MOST_DOUBTS]
    for count in range(1, len(moves) + 1):
        for some in itertools.combinations(moves, count):
            moved = assignment.clone()
            for _, token, center in some:
                moved[token] = center
            if check_rows(rows, merged(moved), error).all():
                return count
    raise AssertionError(
        f"centres {centers[wrong].tolist()} are not the merge of their tokens: off by "
        f"{(rows.double() - merged(assignment))[wrong].abs().max():.3g}, and {len(moves)} near ties do not explain it"
    )


# ---- the ops of the stages: every choice follows from what the op itself returned ---------------------------------


def check_segment(features, cu_frames, min_segments, threshold, result) -> None:
    ids, similarity = result
    assert ids.dtype == torch.int32
    want = torch.tensor(cosine_to_next(features.double(), cu_frames), dtype=torch.float64, device=features.device)
    torch.testing.assert_close(similarity.double(), want, rtol=0, atol=2e-6)
    threshold = torch.tensor(threshold, dtype=similarity.dtype).item()
    segments = spec.segments(similarity.tolist(), cu_frames, min_segments, threshold)
    assert ids.tolist() == [i for i, (begin, end) in enumerate(segments) for _ in range(begin, end)]


def check_density(tokens, mask, num_neighbors, density) -> None:
    assert density.shape == tokens.shape[:2]
    for frame, part in enumerate(torch.ones_like(density, dtype=torch.bool) if mask is None else mask):
        assert (density[frame][~part] == 0).all()
        if part.any():
            x = tokens[frame][part]
            low, high = density_bounds(*squared_distances(x), num_neighbors, tiny(x))
            assert ((low <= density[frame][part]) & (density[frame][part] <= high)).all()


def check_select_peaks(tokens, density, num_peaks, mask, result) -> None:
    centers, score = result
    n = tokens.shape[1]
    assert centers.dtype == torch.int64
    mask = torch.ones_like(density, dtype=torch.bool) if mask is None else mask
    for frame, part in enumerate(mask):
        assert (score[frame][~part] == 0).all()
        count = min(num_peaks, int(part.sum()))
        best = (-score[frame]).masked_fill(~part, torch.inf).argsort(stable=True)[:count].sort().values
        assert torch.equal(centers[frame], torch.nn.functional.pad(best, (0, num_peaks - count), value=-1))
        if part.any():
            rho = density[frame][part].double()
            squared, error = squared_distances(tokens[frame][part])
            denser = is_denser(rho)
            low, high = (rho * delta(d.clamp_min(0).sqrt(), denser) for d in (squared - error, squared + error))
            mine = score[frame][part]
            assert ((low * (1 - 1e-6) <= mine) & (mine <= high * (1 + 1e-6))).all()
    assert centers.shape == (len(tokens), num_peaks)
    assert score.shape == (len(tokens), n)


def check_scatter_merge(tokens, centers, mask, merge_floor, merge_centers, result) -> int:
    merged, assignment, counts = result
    batch, n, channels = tokens.shape
    assert merged.shape == (batch, centers.shape[1], channels)
    assert merged.dtype == tokens.dtype
    assert assignment.dtype == counts.dtype == torch.int64
    doubts = 0
    for frame in range(batch):
        x, mine = tokens[frame], centers[frame]
        present = mine >= 0
        merges = torch.ones(n, dtype=torch.bool, device=x.device) if mask is None else mask[frame].clone()
        if not merge_centers:
            merges[mine[present]] = False
        merges &= present.any()
        assert torch.equal(assignment[frame] >= 0, merges)
        assert (assignment[frame][~merges] == -1).all()
        assert torch.equal(torch.bincount(assignment[frame][merges], minlength=len(mine)), counts[frame])
        assert (merged[frame][~present] == 0).all()
        if not present.any():
            continue
        cosine = cosines(x, x[mine.clamp_min(0)]).masked_fill(~present, -torch.inf)
        best = cosine.amax(1)
        chosen = cosine.gather(1, assignment[frame].clamp_min(0)[:, None]).squeeze(1)
        assert (best - chosen <= RELATIVE * best.abs() + 1e-6)[merges].all()
        doubts += int((chosen < best)[merges].sum())
        one_hot = torch.nn.functional.one_hot(assignment[frame] + 1, len(mine) + 1)[:, 1:].double()
        mean = one_hot.T @ x.double() / counts[frame].clamp_min(1)[:, None]
        weight = (1 / (counts[frame] + 1).double()).clamp_min(merge_floor)[:, None]
        own = x[mine.clamp_min(0)].double()
        want = torch.where(counts[frame][:, None] > 0, weight * own + (1 - weight) * mean, own)
        assert check_rows(merged[frame], want, sum_error(x))[present].all()
    return doubts


# ---- prune ---------------------------------------------------------------------------------------------------------


def check_prune(tokens, saliency, frame_features, cu_frames, config: PruneConfig, result) -> int:
    """result: (rows, indices, frame_counts) of torch.ops.fastvid.prune with these arguments."""
    rows, indices, frame_counts = result
    frames, n, channels = tokens.shape
    assert rows.dtype == tokens.dtype
    assert indices.dtype == torch.int64
    assert frame_counts.dtype == torch.int32
    assert rows.shape == (len(indices), channels)
    assert rows.device == indices.device == frame_counts.device == tokens.device
    assert frame_counts.shape == (frames,)
    if len(indices):
        assert (indices[1:] > indices[:-1]).all()
        assert indices[0] >= 0
        assert indices[-1] < frames * n
    budget = frames * spec.frame_budget(n, config.retention_ratio)
    assert len(indices) == budget if config.exact_count else len(indices) <= budget
    kept_per_frame = torch.bincount(indices // n, minlength=frames).tolist()
    assert frame_counts.tolist() == kept_per_frame

    features = [
        (tokens if frame_features is None else frame_features).to(dtype) for dtype in (torch.float64, torch.float32)
    ]
    if frame_features is None:
        features = [x.mean(1) for x in features]
    similarity, in_float32 = (cosine_to_next(x, cu_frames) for x in features)
    failure = None
    for doubts, segments, nudged in possible_similarities(similarity, in_float32, cu_frames, config):
        plan = [share for b, e in segments for share in spec.plan_segment(nudged[b:e], n, config)]
        wanted = [salient + centers for salient, centers in plan]
        if wanted != kept_per_frame:
            failure = failure or AssertionError(f"frame_counts: got {kept_per_frame}, want {wanted}")
            continue
        try:
            return doubts + _check_choices(tokens, saliency, config, rows, indices, segments, plan)
        except AssertionError as error:
            failure = error
    if failure:
        raise failure
    return 0


def check_case(case: inputs.Case, result) -> int:
    """The same of a case, on the host: small tensors are judged sooner there."""
    case = case.to("cpu")
    args, _ = case.arguments()
    return check_prune(*args, case.config, [x.cpu() for x in result])


def cosine_to_next(features: Tensor, cu_frames) -> list[float]:
    unit = features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
    similarity = torch.nn.functional.pad((unit[:-1] * unit[1:]).sum(1), (0, 1), value=-1.0)[: len(features)].tolist()
    for _, end in spec.videos(cu_frames, len(features)):
        similarity[end - 1] = -1.0
    return similarity


def _check_choices(tokens, saliency, config, rows, indices, segments, plan) -> int:
    frames, n, channels = tokens.shape
    num_salient, num_context = torch.tensor(plan, device=tokens.device).view(frames, 2).unbind(1)
    kept = torch.zeros(frames * n, dtype=torch.bool, device=tokens.device)
    kept[indices] = True
    kept = kept.view(frames, n)
    order = (-saliency.double()).argsort(dim=1, stable=True)  # NaN last
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(n, device=tokens.device).expand_as(order))
    salient = rank < num_salient[:, None]
    assert (kept | ~salient).all(), "a salient token was not kept"
    centers = kept & ~salient
    assert torch.equal(centers.sum(1), num_context)
    as_they_are = salient.flatten()[indices]
    assert same_bits(rows[as_they_are], tokens.reshape(-1, channels)[indices[as_they_are]]), "a salient row changed"

    doubts = 0
    for frame in num_context.nonzero().flatten().tolist():
        rest = ~salient[frame]
        doubts += check_peaks(tokens[frame][rest], centers[frame][rest], config.num_neighbors)
    place = torch.full((frames * n,), -1, device=tokens.device)
    place[indices] = torch.arange(len(indices), device=tokens.device)
    for begin, end in segments:
        anchors = [f for f in range(begin, end) if plan[f][1]]
        if not anchors:
            continue
        x = tokens[begin:end].reshape(-1, channels)
        mergeable = ~salient[begin:end].flatten()
        error = sum_error(x)
        of_anchors = [centers[f].nonzero().flatten() + (f - begin) * n for f in anchors]
        cosine = cosines(x, x[torch.cat(of_anchors)]).split([len(c) for c in of_anchors], dim=1)
        for mine, similar in zip(of_anchors, cosine):
            doubts += check_merge(
                x,
                mine,
                mergeable,
                rows[place[begin * n + mine]],
                config.merge_floor,
                config.merge_centers,
                error=error,
                cosine=similar,
            )
    return doubts
