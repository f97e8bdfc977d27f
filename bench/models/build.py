"""The models with random weights, and prompts for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from fastvid_ext import PruneConfig

__all__ = ["SPECS", "Layout", "build", "prompt"]

QWEN2_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
TINY_TEXT = QWEN2_7B | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
TINY_SIGLIP = SO400M | {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 4,
}
TEXT_BEFORE, TEXT_AFTER = 14, 30  # tokens around the video, as in a chat template with a short question


@dataclasses.dataclass(frozen=True)
class Layout:
    """A model of the benchmark.

    Attributes:
        family: "llava" or the name of a Qwen model.
        grid: (T, H, W) frames, and rows and columns of tokens a frame, of its video.
        newline: its newline tokens, as in ``fastvid_ext.prune_embeddings``.
        preset: its parameters.
    """

    family: str
    grid: tuple[int, int, int]
    newline: str
    preset: Callable[..., PruneConfig]


SPECS = {
    "llava_onevision": Layout("llava", (32, 14, 14), "one", PruneConfig.llava_onevision),
    "llava_video": Layout("llava", (64, 13, 13), "grid", PruneConfig.llava_video),
    # The paper's setting, 768 frames in 13447 tokens; Qwen takes two frames at a time.
    "qwen2_vl": Layout("qwen2_vl", (384, 5, 7), "none", PruneConfig.qwen2_vl),
    "qwen2_5_vl": Layout("qwen2_5_vl", (96, 12, 12), "none", PruneConfig.qwen2_5_vl),
}
TINY_GRIDS = {
    "llava_onevision": (10, 4, 4),
    "llava_video": (12, 3, 3),
    "qwen2_vl": (12, 5, 7),
    "qwen2_5_vl": (10, 4, 6),
}


def build(name: str, tiny: bool, device: torch.device) -> tuple[nn.Module, Layout, nn.Module | None]:
    """The model in bf16 (float32 on a CPU), its layout, and a SigLIP with the pooling head that LLaVA's leaves out."""
    layout = SPECS[name]
    if tiny:
        layout = dataclasses.replace(layout, grid=TINY_GRIDS[name])
    text = TINY_TEXT if tiny else QWEN2_7B
    head = None
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:  # the initialisation is quick there
        if layout.family == "llava":
            siglip = TINY_SIGLIP if tiny else SO400M
            config = transformers.LlavaOnevisionConfig(
                vision_config=transformers.SiglipVisionConfig(**siglip, vision_use_head=False),
                text_config=transformers.Qwen2Config(**text),
                vision_feature_layer=-1,
                vision_feature_select_strategy="full",
                image_token_index=text["vocab_size"] - 2,
                video_token_index=text["vocab_size"] - 1,
                image_token_id=text["vocab_size"] - 2,
                video_token_id=text["vocab_size"] - 1,
            )
            kind = transformers.LlavaOnevisionForConditionalGeneration
            head = transformers.SiglipVisionModel(
                transformers.SiglipVisionConfig(**(siglip | {"num_hidden_layers": 1}))
            ).to(dtype)
        else:
            config, kind = _qwen(layout.family, text, tiny)
        model = kind._from_config(config, dtype=dtype).to(device).eval()
    return model.requires_grad_(False), layout, head


def _qwen(family: str, text: dict[str, Any], tiny: bool) -> tuple[Any, Any]:
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]  # 16, 24, 24 of 64
    rope = {"type": "default", "rope_type": "default", "mrope_section": sections, "rope_theta": text["rope_theta"]}
    text = text | {"rope_scaling": rope, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": None}
    last = text["vocab_size"] - 1
    ids = {
        "image_token_id": last - 1,
        "video_token_id": last,
        "vision_start_token_id": last - 2,
        "vision_end_token_id": last - 3,
    }
    vision = {"depth": 2 if tiny else 32, "num_heads": 2 if tiny else 16, "patch_size": 14}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 16 if tiny else 1280, "hidden_size": text["hidden_size"]}
        config = transformers.Qwen2VLConfig(vision_config=vision, text_config=text, **ids)
        return config, transformers.Qwen2VLForConditionalGeneration
    vision |= {"hidden_size": 16 if tiny else 1280, "intermediate_size": 32 if tiny else 3420}
    vision |= {"out_hidden_size": text["hidden_size"], "fullatt_block_indexes": [1] if tiny else [7, 15, 23, 31]}
    config = transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **ids)
    return config, transformers.Qwen2_5_VLForConditionalGeneration


def prompt(model: nn.Module, layout: Layout, batch: int) -> dict[str, Tensor]:
    """Inputs of the model, always the same: in each row a video between two pieces of text."""
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    generator = torch.Generator(device).manual_seed(0)
    frames, height, width = layout.grid
    count = frames * height * width + {"none": 0, "one": 1, "grid": frames * height}[layout.newline]
    video = model.config.video_token_id
    row = list(range(1, 1 + TEXT_BEFORE)) + [video] * count + list(range(20, 20 + TEXT_AFTER))
    ids = torch.tensor([row] * batch, device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if layout.family == "llava":
        size = model.config.vision_config.image_size
        inputs["pixel_values_videos"] = torch.randn(
            batch, frames, 3, size, size, generator=generator, device=device, dtype=dtype
        )
        return inputs
    grid = torch.tensor([[frames, 2 * height, 2 * width]] * batch, device=device)
    patches = int(grid.prod(1).sum())
    inputs |= {
        "pixel_values_videos": torch.randn(patches, 3 * 2 * 14 * 14, generator=generator, device=device, dtype=dtype),
        "video_grid_thw": grid,
    }
    if transformers.__version__ >= "5":
        inputs["mm_token_type_ids"] = torch.where(ids == video, 2, 0).int()
    return inputs
