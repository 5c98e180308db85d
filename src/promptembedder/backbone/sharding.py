"""Sharding of a frozen backbone that exceeds the memory of one device: each process stores a part of every layer."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel

from promptembedder.backbone.layers import decoder_layers
from promptembedder.backbone.load import Backbone

__all__ = ["is_sharded", "shard_layers"]

_SHARDED = "_promptembedder_sharded"


def shard_layers(backbone: Backbone, device: torch.device) -> None:
    """Shard the weights of each layer over all processes. A layer is complete on `device` only during its computation.

    FSDP hooks gather the weights, so the modules do not change. Input embeddings, position tables and the last norm are
    not sharded. All processes must then call the decoder equally often. The backbone must be in CPU memory, and the
    process group must exist.

    Raises:
        BackboneError: If the decoder's layers cannot be found.
    """
    from torch.distributed.fsdp import fully_shard  # slow import, rarely needed

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = decoder_layers(backbone.decoder)
    whole = set(backbone.decoder.parameters()) - set(layers.parameters())
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    # the decoder has no sharded weights itself, but as the root module it prefetches the next layer
    fully_shard(backbone.decoder, mesh=mesh, ignored_params=whole)
    setattr(backbone.decoder, _SHARDED, True)


def is_sharded(decoder: PreTrainedModel) -> bool:
    """Return True if all processes must call this decoder equally often."""
    return hasattr(decoder, _SHARDED)
