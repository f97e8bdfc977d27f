from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from fastvid_ext._library import covers, status

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=150, database=None)
settings.load_profile("repeatable")


def why_no_cuda() -> str | None:
    if status.cuda_off:
        return f"CUDA is off: {status.cuda_off}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    capability = torch.cuda.get_device_capability()
    if not covers(status.architectures, capability):
        return f"built for {' '.join(status.architectures)}, not for compute capability {capability}"
    return None


def pytest_collection_modifyitems(items):
    reason = why_no_cuda()
    if reason:
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request) -> str:
    return request.param
