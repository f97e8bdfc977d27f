"""What a piece of code asks of the device."""

from __future__ import annotations

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Ops whose result, or the shape of it, is only known when the device is done.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}


class Ops(TorchDispatchMode):
    """The names of the ops that were run, views aside, and of those that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []
        self.waited: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        to_host = name == "_to_copy" and torch.device(kwargs.get("device") or "meta").type == "cpu"
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITING or by_mask or (to_host and not kwargs.get("non_blocking")):
            self.waited.append(name)
        views = [result.alias_info for result in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in views):
            self.launched.append(name)
        return func(*args, **kwargs)


@contextlib.contextmanager
def before(module, enable):
    """The ops, and the syncs of a GPU, of those hooks that `enable` puts in front of the module."""
    ops = Ops()

    def begin(*_):
        ops.__enter__()
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("error")

    def end(*_):
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        ops.__exit__(None, None, None)

    hooks = [module.register_forward_pre_hook(begin)]
    with enable() as handle:
        hooks.append(module.register_forward_pre_hook(end))
        try:
            yield handle, ops
        finally:
            for hook in hooks:
                hook.remove()
