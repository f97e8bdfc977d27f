"""Writes the vectors of tests/golden as files that a C++ program reads: ``python write_cases.py FOLDER``.

For each, FOLDER/NAME/module.pt is a TorchScript module that calls torch.ops.fastvid.prune with the parameters of the
vector, and FOLDER/NAME/tensors.pt a dict of its inputs and of what has to come out.
"""

import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers import golden


class Prune(torch.nn.Module):
    retention_ratio: float
    min_segments: int
    segment_threshold: float
    context_ratio: float
    anchor_stride: int
    merge_floor: float
    num_neighbors: int
    thin_threshold: float | None
    spread_remainder: bool
    merge_centers: bool

    def __init__(self, parameters: dict[str, object]) -> None:
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, value)

    def forward(
        self, tokens: torch.Tensor, saliency: torch.Tensor, frame_features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.ops.fastvid.prune(
            tokens,
            saliency,
            frame_features,
            retention_ratio=self.retention_ratio,
            min_segments=self.min_segments,
            segment_threshold=self.segment_threshold,
            context_ratio=self.context_ratio,
            anchor_stride=self.anchor_stride,
            merge_floor=self.merge_floor,
            num_neighbors=self.num_neighbors,
            thin_threshold=self.thin_threshold,
            spread_remainder=self.spread_remainder,
            merge_centers=self.merge_centers,
        )


def main() -> None:
    warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated", category=Warning)
    for name in golden.NAMES:
        vector = golden.load(name)
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        torch.jit.script(Prune(vector.config.to_kwargs())).save(folder / "module.pt")
        tensors = {
            "tokens": vector.tokens.float(),
            "saliency": vector.saliency,
            "frame_features": vector.frame_features.float(),
            "kept_index": vector.kept_index,
            "kept_tokens": vector.kept_tokens,
        }
        torch.save(tensors, folder / "tensors.pt")


if __name__ == "__main__":
    main()
