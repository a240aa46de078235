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

    After a block that succeeds, a process of torchrun ends here, at once. Shutting Python down
    aborted one now and then, after all was done, perhaps since FSDP2's tensors keep gloo's group
    and its threads alive. Raises ValueError if another process is lost.
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
        raise ValueError(
            f"rank {RANK} lost another process of this run and ends too; fix the error of that "
            "process, then run the same command with --resume") from error


def say(line, file=None):
    """Print a line, in rank 0 only."""
    if RANK == 0:
        print(line, file=file, flush=True)


@contextlib.contextmanager
def rank_0_first():
    """Rank 0 runs the block first; the others follow, and find the files it wrote."""
    if RANK > 0:
        dist.barrier()
    yield
    if WORLD > 1 and RANK == 0:
        dist.barrier()


def rank_0_holds(context):
    """The context in rank 0; in the others nothing."""
    return context if RANK == 0 else contextlib.nullcontext()


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
        vision = [] if model.vit is None else [*model.vit.blocks, model.qformer]
        for block in (*vision, *model.llama.blocks):
            fully_shard(block)
        return fully_shard(model)
    if WORLD > 1:                       # all processes read the same files: nothing to broadcast
        return DistributedDataParallel(model, init_sync=False, forward_sync_buffers=False)
    return model


def accumulating(module, last):
    """The context of one part of a batch: DistributedDataParallel communicates in the last only."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return contextlib.nullcontext()


def mean_over_tokens(parameters, tokens):
    """Scale gradients from the processes' mean of summed losses to the mean over all tokens."""
    for parameter in parameters:
        parameter.grad.mul_(WORLD / tokens)


def clip_gradients(parameters, max_norm):
    """Scale the gradients down to a norm of at most max_norm. Returns the norm before that."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


def on_rank_0(function, model, *arguments):
    """function(model, *arguments) in rank 0, None in the others.

    With FSDP2 all processes compute it, because each holds a share of the weights. The blocks
    gather theirs when they are called, as in training; the rest is gathered here.
    """
    if RANK > 0 and not isinstance(model, FSDPModule):
        return None
    if isinstance(model, FSDPModule):
        model.unshard()
    with torch.compiler.set_stance("force_eager"):   # an answer's shapes change with every token
        result = function(model, *arguments)
    if isinstance(model, FSDPModule):
        model.reshard()
    return None if RANK > 0 else result


# ---- Tensors


def whole(tensor):
    """The whole tensor on the CPU in rank 0, gathered if it is spread (FSDP2); else None."""
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return None if RANK > 0 else tensor.detach().cpu()


def share_of(tensor, parameter):
    """The share of a whole tensor that this process holds of `parameter`, on its device.

    A 0-dimensional tensor, such as the optimizer's step count, is copied as it is.
    """
    if tensor.ndim == 0:
        return tensor.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor):
        tensor = tensor.to(parameter.device)
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None)
    return tensor.to(parameter.device, copy=True)
