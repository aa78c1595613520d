"""A CUDA device without a GPU: tensors on it say that they are on `cuda:0`, and compute on the CPU.

What a real device refuses is refused here too: operations on tensors of both devices, except for those that CUDA allows
(copies, indices on the CPU, single numbers), conversion to numpy without a copy, random numbers of a generator of the
CPU, products of integers. So a tensor on the wrong device is an error in a test. Speed, memory, and the order
of asynchronous copies are not imitated.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")

_aten = torch.ops.aten
_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_NO_NUMBERS = {_aten.cat, _aten.stack, _aten.searchsorted, _aten.gather}  # a single number must be on the device too
_PRODUCTS = {_aten.mm, _aten.bmm, _aten.addmm, _aten.mv, _aten.dot}


class CudaTensor(torch.Tensor):
    """A tensor that says it is on `cuda:0`; ``inner`` is the tensor on the CPU that holds its numbers."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> CudaTensor:
        options = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        with torch.inference_mode(False):  # a view of a tensor from outside of inference mode is none of its tensors
            made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), **options)
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        if self.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("a gradient that flows from one device to the other")
        return self.inner.clone()

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CudaTensor({self.inner!r})"

    def __deepcopy__(self, memo: Any) -> CudaTensor:
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        return memo.setdefault(id(self), copy)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.clone().__reduce_ex__(protocol)  # files are read with map_location='cpu'

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        _refuse(func, args, kwargs)
        given = {id(x.inner): x for x in tree_leaves((args, kwargs)) if isinstance(x, CudaTensor)}
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if func.overloadpacket is _aten.copy_ and not isinstance(args[0], CudaTensor):
            return out
        return tree_map(lambda x: given.get(id(x), CudaTensor(x)) if isinstance(x, torch.Tensor) else x, out)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, CudaTensor) else value


def _refuse(func: Any, args: Any, kwargs: Any) -> None:
    """Raise RuntimeError where CUDA does."""
    packet, leaves = func.overloadpacket, tree_leaves((args, kwargs))
    if any(isinstance(x, torch.Generator) for x in leaves):
        raise RuntimeError(f"{func}: Expected a 'cuda' device type for generator but found 'cpu'")
    if packet is _aten.copy_:
        return
    if packet in _INDEXED:
        if not isinstance(args[0], CudaTensor):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        leaves = tree_leaves((args[2:3], kwargs))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    here = [x for x in tensors if not isinstance(x, CudaTensor) and (x.dim() or packet in _NO_NUMBERS)]
    if here:
        raise RuntimeError(
            f"{func}: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu; "
            f"on cpu: {[tuple(x.shape) for x in here]}"
        )
    if packet in _PRODUCTS and not tensors[0].is_floating_point():
        raise RuntimeError(f"{func}: not implemented for {tensors[0].dtype} on CUDA")


def _kind(value: Any) -> str:
    """Return the type of the device that a value names, or of a tensor that another goes to; '' if it names none."""
    if isinstance(value, torch.Tensor):
        return value.device.type
    text = str(value) if isinstance(value, (str, torch.device)) else ""
    return text.partition(":")[0] if text.startswith(("cuda", "cpu")) else ""


class _Cuda(TorchFunctionMode):
    """Makes tensors on the device, copies them there and back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.pin_memory:
            return args[0].clone()
        if func is torch.nn.functional.one_hot and isinstance(args[0], CudaTensor):  # makes a tensor inside of torch
            return CudaTensor(func(args[0].inner, *args[1:], **kwargs))
        kwargs.pop("pin_memory", None)
        if func is torch.Tensor.to:
            return _moved(*args, **kwargs)
        kind = _kind(kwargs.get("device"))
        if not kind:
            return func(*args, **kwargs)
        made = func(*map(_inner, args), **kwargs | {"device": "cpu"})
        return CudaTensor(made) if kind == "cuda" else made


def _moved(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Return what `Tensor.to` returns."""
    kind = "".join(map(_kind, (*args, *kwargs.values())))
    args, kwargs = tuple(map(_there, args)), {name: _there(x) for name, x in kwargs.items()}
    if isinstance(tensor, CudaTensor):
        return (tensor.cpu() if kind == "cpu" else tensor).to(*args, **kwargs)
    if kind != "cuda":
        return tensor.to(*args, **kwargs)
    if tensor.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError("a gradient that flows from one device to the other")
    return CudaTensor(tensor.detach().to(*args, **kwargs | {"copy": True}))


def _there(value: Any) -> Any:
    """Return the name of the CPU for a device, and the CPU's tensor for one on the device."""
    return _inner(value) if isinstance(value, torch.Tensor) else "cpu" if _kind(value) else value


_submit = ThreadPoolExecutor.submit


def _submit_inside(pool: ThreadPoolExecutor, work: Any, /, *args: Any, **kwargs: Any) -> Any:
    def inside() -> Any:
        with _Cuda():  # a thread starts without the modes of the others
            return work(*args, **kwargs)

    return _submit(pool, inside)


@contextmanager
def fake_cuda(free: int = 1 << 30) -> Iterator[None]:
    """Let torch find one GPU with ``free`` bytes of memory while the block runs."""
    told: dict[str, Any] = {
        "is_available": True, "device_count": 1, "mem_get_info": (free, free), "memory_reserved": 0,
        "memory_allocated": 0, "get_device_capability": (9, 0), "get_device_name": "no GPU", "synchronize": None,
        "empty_cache": None, "set_device": None, "current_device": 0, "get_rng_state": torch.zeros(1),
        "set_rng_state": None, "is_bf16_supported": True,
    }  # fmt: skip
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setattr(torch.cuda, name, lambda *_, _value=value, **__: _value)
        patch.setattr(ThreadPoolExecutor, "submit", _submit_inside)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Cuda():
                yield
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
