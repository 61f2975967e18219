"""FSDP2: each process holds a share of every weight, and a layer is gathered while it computes.

The units are the decoder's layers; embedding, last norm and head are the root's, gathered for a whole step.
Frozen and trained weights mix: what is frozen is gathered as it is held (16 bits, or packed four); what
trains is held in fp32 and gathered in the compute type, its gradients are averaged in fp32 and shared out.
Beside packed weights, whose bits must stay, nothing is cast where it is gathered; autocast does it later.

torch's ``fully_shard`` is used on the loaded model rather than through accelerate, which shards only when
training begins: until then each GPU would hold all of a model that is sharded because it does not fit one. So
samples, checks and held-out losses of before the first step run on shares too. All processes must then enter
them together, as each forward pass gathers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import WhetError
from .collectives import wait_for_all
from .process_group import rank, world_size

T = TypeVar("T")


def in_turn(work: Callable[[], T]) -> T:
    """Let each process do its work while the others wait: one at a time holds a whole model in memory.

    An error of one is raised there; whoever watches the processes ends the others.
    """
    done: list[T] = []
    for turn in range(world_size()):
        if turn == rank():
            done.append(work())
        wait_for_all()
    return done[0]


def casts_gathered(base_precision: str, compute_dtype: str) -> bool:
    """Whether what trains is cast to the compute type where it is gathered, so that nothing else must."""
    return compute_dtype != "fp32" and base_precision != "nf4"


def shard(model: nn.Module, device: torch.device, dtype: torch.dtype, *, casts: bool) -> None:
    """Keep this process's share of each weight on ``device`` and give the rest back; changes ``model`` in
    place, layer by layer, so a device never holds more than one layer beside the shares.

    Args:
        model: transformers' model that holds the layers; a PEFT wrapper's ``get_base_model()``. Every process
            must hold the same weights.
        device: that the shares lie on.
        dtype: what it computes in.
        casts: see :func:`casts_gathered`; else the forward passes run under autocast.

    Raises:
        WhetError: ``parallel.no_layers`` for a model that does not say what its layers are,
            ``parallel.fp16``.
    """
    if dtype == torch.float16:
        raise WhetError(
            "parallel.fp16",
            "Weights held in shares (FSDP) are not trained in fp16: each process would scale its own loss.",
            "Set training.precision to bf16, or to fp32 on a GPU without it.",
        )
    mesh = init_device_mesh(device.type, (world_size(),))
    policy = MixedPrecisionPolicy(dtype, torch.float32) if casts else MixedPrecisionPolicy()
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def count_bytes_as_numbers(model: nn.Module) -> None:
    """Let the bytes of four-bit weights count as fp32 numbers, the same bits, before they are shared.

    FSDP2 in torch 2.11 takes no whole numbers. It is bitsandbytes' ``bnb_4bit_quant_storage``, for weights
    that were quantised already. No 16-bit type will do: where all that is gathered has it, a GPU copies it
    through fp32, and that changes the bits of the NaNs among the words, some in ten thousand.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            weight: Any = module.weight
            weight.data = weight.data.flatten().view(torch.float32).unsqueeze(1)
            weight.quant_storage = module.quant_storage = torch.float32


def _layers(model: Any) -> list[nn.Module]:
    """The modules whose classes the model says must stay in one piece: its layers."""
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise WhetError(
            "parallel.no_layers",
            f"{type(model).__name__} does not say which of its modules are its layers, so its weights cannot "
            "be held in shares.",
            "Set hardware.gpus to 1.",
        )
    inner = {id(part) for layer in layers for part in layer.modules() if part is not layer}
    return [layer for layer in layers if id(layer) not in inner]


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` was called on this very model."""
    return isinstance(model, FSDPModule)


def only_shares(model: nn.Module) -> None:
    """Let go of what is gathered, so that the model's parameters are its shares.

    After a forward pass alone those of the root are not, until the next one: not what to step or to save.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """What trains, by its name in the state dict, gathered on the CPU of process 0; empty elsewhere.

    All processes enter it together. One weight at a time is whole on a device.
    """
    only_shares(model)
    named = model.named_parameters(remove_duplicate=False)
    trained = {name: parameter for name, parameter in named if parameter.requires_grad}
    taken = {id(parameter): _whole(parameter.detach()) for parameter in trained.values()}
    return {name: taken[id(parameter)] for name, parameter in trained.items()} if rank() == 0 else {}


def whole_optimizer(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state dict with each share gathered on process 0, as one process would have written it.

    All processes enter it together; what the others get is of no use.
    """
    moments = {
        key: {name: _whole(value) for name, value in entry.items()} for key, entry in state["state"].items()
    }
    return {**state, "state": moments}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which each process has a share, gathered in all of them, who enter it together; any other
    tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _whole(value: Any) -> Any:
    """Gathered on the CPU of process 0; elsewhere nothing is kept."""
    if not isinstance(value, torch.Tensor):
        return value
    full = whole(value)
    return full.cpu() if rank() == 0 else torch.empty(0)


@torch.no_grad()
def take_shares(targets: dict[str, torch.Tensor], whole: Callable[[str], torch.Tensor]) -> None:
    """Write whole tensors into shares (or whole ones), in place; each process reads for itself.

    Args:
        targets: by name.
        whole: the tensor of a name.
    """
    for name, target in targets.items():
        target.copy_(_share(whole(name), target))


def share_optimizer(state: dict[str, Any], own: list[dict[str, Any]]) -> dict[str, Any]:
    """A whole state dict as an AdamW over shares takes it.

    Args:
        state: in torch's layout, as :func:`whole_optimizer` made it or one process wrote it.
        own: the optimizer's ``param_groups``.

    Raises ValueError for other groups than the optimizer's.
    """
    keys = [key for group in state["param_groups"] for key in group["params"]]
    like = dict(zip(keys, (parameter for group in own for parameter in group["params"]), strict=True))
    moments = {
        key: {name: _share_if_alike(value, like[key]) for name, value in entry.items()}
        for key, entry in state["state"].items()
    }
    return {**state, "state": moments}


def _share_if_alike(value: Any, like: torch.Tensor) -> Any:
    alike = isinstance(value, torch.Tensor) and value.shape == like.shape
    return _share(value, like) if alike else value


def _share(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of ``whole`` that this process holds of ``like``; nothing is sent."""
    if not isinstance(like, DTensor):
        return whole.to(like.device)
    placed = whole.to(like.device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)
