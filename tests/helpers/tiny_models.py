"""Tiny models of every supported family, from configs with random weights, and prompts for them."""

from __future__ import annotations

import torch
import transformers
from transformers import SiglipVisionConfig, SiglipVisionModel

FAMILIES = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
IMAGE, VIDEO, START, END = 90, 91, 92, 93  # token ids
PATCH_VALUES = 3 * 2 * 4 * 4  # channels, frames, rows, columns of one patch of Qwen's


def siglip_config(**changes) -> SiglipVisionConfig:
    """7 x 7 patches, pooled to 4 x 4 tokens."""
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3}
    return SiglipVisionConfig(**(sizes | {"image_size": 28, "patch_size": 4} | changes))


def siglip(seed: int = 1) -> SiglipVisionModel:
    """A tower with its pooling head, as SigLIP checkpoints have it."""
    torch.manual_seed(seed)
    return SiglipVisionModel(siglip_config()).eval()


def make(family: str, attention: str = "sdpa", seed: int = 0, **text) -> torch.nn.Module:
    torch.manual_seed(seed)
    text = TEXT | text
    if family == "llava_onevision":
        config = transformers.LlavaOnevisionConfig(
            vision_config=siglip_config(vision_use_head=False),
            text_config=transformers.Qwen2Config(**text),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_grid_pinpoints=[[28, 28]],
        )
        kind = transformers.LlavaOnevisionForConditionalGeneration
    else:
        config, kind = _qwen(family, text)
    config._attn_implementation = attention
    model = kind._from_config(config, attn_implementation=attention).eval()
    # Larger than the initial weights, so that the model minds what it is fed.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE, VIDEO, START, END]
    return model


def _qwen(family: str, text: dict) -> tuple:
    tokens = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }
    rope = {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 2, "num_heads": 2, "in_channels": 3, "patch_size": 4, "temporal_patch_size": 2}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, "spatial_merge_size": 2}
        config = transformers.Qwen2VLConfig(vision_config=vision, text_config=text | {"rope_scaling": rope}, **tokens)
        return config, transformers.Qwen2VLForConditionalGeneration
    if family == "qwen2_5_vl":
        vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "spatial_merge_size": 2}
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}  # windows of 2 x 2 tokens
        config = transformers.Qwen2_5_VLConfig(
            vision_config=vision, text_config=text | {"rope_scaling": rope}, **tokens
        )
        return config, transformers.Qwen2_5_VLForConditionalGeneration
    vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "spatial_merge_size": 2}
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    rope |= {"mrope_interleaved": True}
    config = transformers.Qwen3VLConfig(
        vision_config=vision, text_config=text | {"head_dim": 8, "rope_scaling": rope}, **tokens
    )
    return config, transformers.Qwen3VLForConditionalGeneration


VIDEO_GRID = {"llava_onevision": (10, 7, 7)}
QWEN_GRID = (10, 8, 12)  # patches: 4 x 6 tokens a frame


def grid_of(family: str) -> tuple[int, int, int]:
    """Frames, and rows and columns of patches a frame, of a video that is long enough to be cut."""
    return VIDEO_GRID.get(family, QWEN_GRID)


def tokens_of(family: str, kind: str, grid: tuple[int, int, int]) -> int:
    frames, height, width = grid
    if family == "llava_onevision":
        return frames * 16 + 1 if kind == "video" else 49 + 7 * 8  # an image: whole, and its one tile with newlines
    return frames * height * width // 4


def inputs(family: str, rows: list[list], seed: int = 0) -> dict[str, torch.Tensor]:
    """A left-padded batch. A row is a list of token ids and of ("video" or "image", grid)."""
    generator = torch.Generator().manual_seed(seed)
    ids = [_ids(family, row) for row in rows]
    length = max(map(len, ids))
    batch = {
        "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in ids]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids]),
    }
    for kind, pixels in (("video", "pixel_values_videos"), ("image", "pixel_values")):
        grids = [part[1] for row in rows for part in row if isinstance(part, tuple) and part[0] == kind]
        if not grids:
            continue
        if family != "llava_onevision":
            patches = [_patches(grid, generator) for grid in grids]
            batch |= {pixels: torch.cat(patches), f"{kind}_grid_thw": torch.tensor(grids)}
        elif kind == "video":
            batch[pixels] = torch.stack([_frames(grid[0], 28, generator) for grid in grids])
        else:
            batch[pixels] = torch.stack([_frames(2, 28, generator) for _ in grids])
            batch["image_sizes"] = torch.tensor([[28, 28]] * len(grids))
    if family != "llava_onevision" and transformers.__version__ >= "5":
        kinds = torch.where(batch["input_ids"] == VIDEO, 2, torch.where(batch["input_ids"] == IMAGE, 1, 0))
        batch["mm_token_type_ids"] = kinds.int()
    return batch


def _ids(family: str, row: list) -> list[int]:
    ids: list[int] = []
    for part in row:
        if isinstance(part, int):
            ids.append(part)
            continue
        kind, (frames, height, width) = part
        token = VIDEO if kind == "video" else IMAGE
        if family == "llava_onevision":
            ids += [token] * tokens_of(family, *part)
        elif family == "qwen3_vl" and kind == "video":  # a timestamp before each frame
            for frame in range(frames):
                ids += [10 + frame % 10, START] + [token] * (height * width // 4) + [END]
        else:
            ids += [START] + [token] * (frames * height * width // 4) + [END]
    return ids


def _frames(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """(F, 3, S, S) in scenes of four frames."""
    scenes = torch.randn(-(-count // 4), 3, size, size, generator=generator).repeat_interleave(4, 0)[:count]
    return scenes + 0.2 * torch.randn(count, 3, size, size, generator=generator)


def _patches(grid: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    frames, height, width = grid
    scenes = torch.randn(-(-frames // 4), height * width, PATCH_VALUES, generator=generator).repeat_interleave(4, 0)
    noise = torch.randn(frames, height * width, PATCH_VALUES, generator=generator)
    return (scenes[:frames] + 0.2 * noise).flatten(0, 1)
