"""The trainable parameters that a run starts from: ours, or the public checkpoints'."""
import torch

from common.loading import load_adapter
from conversion.assembly import check_adapter, take
from conversion.checkpoints import open_checkpoint
from conversion.writing import packed_rows


def load_initial(model, path):
    """Load what --init names into a model whose other parameters are as training starts them.

    path: an adapter.safetensors, a folder with one, ArtGPT-4.pth, or pretrained_minigpt4.pth, which
    holds the projection alone. Raises ValueError, naming the file, if it does not fit the model.
    """
    file = path / "adapter.safetensors" if path.is_dir() else path
    if file.suffix == ".safetensors":
        load_adapter(model, file)
    else:
        load_public(model, file)


def load_public(model, file):
    """Load ArtGPT-4.pth or pretrained_minigpt4.pth, as convert_weights.py reads them."""
    checkpoint = open_checkpoint(file, "artgpt4", "minigpt4")
    check_adapter(checkpoint, model.config, "--weights")
    only = "proj." if checkpoint.kind == "minigpt4" else ""
    shapes = {name: tuple(model.get_parameter(name).shape) for name in model.trainable_names()}
    state = {}
    for name, tensor in take(checkpoint, shapes, only).items():
        state[name] = torch.cat([rows.float() for rows, _ in packed_rows(name, tensor)])
    model.load_state_dict(state, strict=False)
