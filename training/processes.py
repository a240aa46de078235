"""Several processes, which torchrun starts: which one this is, what they tell each other, how they
share a model. When there is only one, these functions do little or nothing."""
import contextlib
import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

RANK = int(os.environ.get("RANK", 0))                # set by torchrun
WORLD = int(os.environ.get("WORLD_SIZE", 1))
UNDER_TORCHRUN = "RANK" in os.environ


@contextlib.contextmanager
def processes(device):
    """Join the processes of torchrun, if there are any. Yields the device of this one. After the
    block, or when another process is lost, a process of torchrun ends here, at once, with 0 or 1:
    shutting Python down aborted one now and then, after all was done or said."""
    if not UNDER_TORCHRUN:
        yield device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    code = 0
    try:
        yield device
        dist.destroy_process_group()
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        code = 1
        print(f"train.py: rank {RANK} lost another process of this run and ends too; mend its "
              "error, then run the same command with --resume", file=sys.stderr)
    sys.stdout.flush()
    os._exit(code)


def say(line, file=None):
    """Print a line, in rank 0 only."""
    if RANK == 0:
        print(line, file=file, flush=True)


def gathered(value):
    """The values of all processes, in the order of their ranks."""
    values = [value] * WORLD
    if WORLD > 1:
        dist.all_gather_object(values, value)
    return values


def spread(model, fsdp=False):
    """The module to train with: calling it in all processes gives gradients averaged over them.
    fsdp: each process holds a share of every block, and gathers the block while it computes it
    (FSDP2). Otherwise each process holds the whole model (DistributedDataParallel)."""
    if fsdp:
        from torch.distributed.fsdp import fully_shard        # a second, in every worker too
        for block in (*model.vit.blocks, model.qformer, *model.llama.blocks):
            fully_shard(block)
        return fully_shard(model)
    if WORLD > 1:                       # all processes read the same files: nothing to broadcast
        return DistributedDataParallel(model, init_sync=False, forward_sync_buffers=False)
    return model


def on_rank_0(function, model, *arguments):
    """function(model, *arguments), in rank 0 at least; else None. With FSDP2 all processes compute
    it. The blocks gather their weights when they are called; the rest is gathered here."""
    if not hasattr(model, "unshard"):
        return function(model, *arguments) if RANK == 0 else None
    model.unshard()
    result = function(model, *arguments)
    model.reshard()
    return result


def local(tensor):
    """The share of a tensor that this process holds: all of it, but for FSDP2."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor):
    """The whole of a tensor, which all processes ask for together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def copy_whole(source, tensor):
    """Copy a whole tensor into one of the model's or the optimizer's: each process its share."""
    if hasattr(tensor, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor
        source = distribute_tensor(source.to(tensor.device), tensor.device_mesh, tensor.placements,
                                   src_data_rank=None)
    tensor.copy_(source)
