"""Several processes: which one this is, what they sum, and how a model is spread over them.

torchrun starts the processes. The rest of training/ reads as for one process and calls these
functions, which do little or nothing when there is only one.
"""
import contextlib
import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

RANK = int(os.environ.get("RANK", 0))                # set by torchrun
WORLD = int(os.environ.get("WORLD_SIZE", 1))
UNDER_TORCHRUN = "RANK" in os.environ


@contextlib.contextmanager
def processes(device):
    """Join the processes of torchrun, if there are any. Yields the device of this one.

    After a block that succeeds, a process of torchrun ends here, at once: shutting Python down
    aborted one now and then, after all was done. Raises ValueError if another process is lost.
    """
    if not UNDER_TORCHRUN:
        yield device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise ValueError(f"rank {RANK} lost another process of this run and ends too; mend its "
                         "error, then run the same command with --resume") from error


def say(line, file=None):
    """Print a line, in rank 0 only."""
    if RANK == 0:
        print(line, file=file, flush=True)


def total(numbers, device):
    """Each of the numbers, summed over all processes."""
    tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
    if WORLD > 1:
        dist.all_reduce(tensor)
    return tensor.tolist()


def gathered(entries):
    """The entries of the lists of all processes, in one list."""
    if WORLD == 1:
        return entries
    lists = [None] * WORLD
    dist.all_gather_object(lists, entries)
    return sum(lists, [])


# ---- The model


def spread(model, fsdp=False):
    """The module to train with: calling it in all processes gives gradients averaged over them.

    fsdp: each process holds a share of every block, and gathers the block while it computes it
    (FSDP2). Otherwise each process holds the whole model (DistributedDataParallel).
    """
    if fsdp:
        for block in (*model.vit.blocks, model.qformer, *model.llama.blocks):
            fully_shard(block)
        return fully_shard(model)
    if WORLD > 1:                       # all processes read the same files: nothing to broadcast
        return DistributedDataParallel(model, init_sync=False, forward_sync_buffers=False)
    return model


def clip_gradients(parameters, max_norm):
    """Scale the gradients down to a norm of at most max_norm. Returns the norm before that."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


def on_rank_0(function, model, *arguments):
    """function(model, *arguments) in rank 0, None in the others.

    With FSDP2 all processes compute it, because each holds a share of the weights. The blocks
    gather theirs when they are called, as in training; the rest is gathered here.
    """
    if not isinstance(model, FSDPModule):
        return None if RANK > 0 else function(model, *arguments)
    model.unshard()
    result = function(model, *arguments)
    model.reshard()
    return None if RANK > 0 else result


# ---- Tensors


def local(tensor):
    """The share of a tensor that this process holds: all of it, but for FSDP2."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor):
    """The whole tensor on the CPU in rank 0, gathered if it is spread (FSDP2); else None."""
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return None if RANK > 0 else tensor.detach().cpu()


def share_of(tensor, parameter):
    """The share of a whole tensor that this process holds of `parameter`, on its device.

    A 0-dimensional tensor, such as the optimizer's step count, is copied as it is.
    """
    if isinstance(parameter, DTensor) and tensor.ndim > 0:
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(tensor.to(parameter.device), mesh, placements, src_data_rank=None)
    return tensor.to(parameter.device, copy=True)
