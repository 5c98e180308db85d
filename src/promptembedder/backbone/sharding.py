"""A frozen backbone that fits no single device: each process keeps a part of every layer."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel

from promptembedder.backbone.layers import decoder_layers
from promptembedder.backbone.load import Backbone

__all__ = ["is_sharded", "shard_layers"]

_SHARDED = "_promptembedder_sharded"


def shard_layers(backbone: Backbone, device: torch.device) -> None:
    """Spread the weights of each layer over all processes; a layer is whole on `device` only while it computes.

    By hooks, so the modules stay what they are. The input table, position tables and last norm stay whole. From then
    on all processes have to call the decoder equally often. The backbone must be in CPU memory, and the process group
    must exist.

    Raises:
        BackboneError: The decoder's layers cannot be found.
    """
    from torch.distributed.fsdp import fully_shard  # takes a while, and few need it

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = decoder_layers(backbone.decoder)
    whole = set(backbone.decoder.parameters()) - set(layers.parameters())
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    # the decoder holds nothing itself, but as the root it lets a layer be fetched while the one before computes
    fully_shard(backbone.decoder, mesh=mesh, ignored_params=whole)
    setattr(backbone.decoder, _SHARDED, True)


def is_sharded(decoder: PreTrainedModel) -> bool:
    """Return True if all processes must call this decoder equally often."""
    return hasattr(decoder, _SHARDED)
