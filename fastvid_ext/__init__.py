"""FastVID as CUDA kernels: prune the tokens of a video before they reach the language model.

``torch.ops.fastvid.prune`` and its stages are there once this package is imported. See README.md.
"""

from . import _library  # noqa: F401, registers the ops
from ._version import __version__
from .api import PruneResult, prune
from .config import PruneConfig, retained_count
from .models import enable
from .prompt import PromptPruning, prune_embeddings

__all__ = [
    "PromptPruning",
    "PruneConfig",
    "PruneResult",
    "__version__",
    "enable",
    "prune",
    "prune_embeddings",
    "retained_count",
]
