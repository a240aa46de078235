"""When the int8 matrices of a large model are packed. That takes longer than reading them: it waits
until the first words of an answer are out, and goes on while a person types."""
import contextlib
import threading

from common.int8 import Int8Linear

AT_ONCE = 2 ** 29                                             # bytes that a token packs, about


def unpacked(model):
    """The int8 layers of a model that can be packed, in the order in which they are used."""
    return [module for module in model.modules()
            if isinstance(module, Int8Linear) and module.can_pack()]


def postpone_packing(model):
    """Let the first words come before the matrices are packed: each of the next tokens (for the
    ViT: pictures) packs a few. Until then they are used as they are stored: a token takes up to
    twice as long, a prompt several times."""
    for part in (model.vit, model.llama):
        size = 0
        for layer in unpacked(part):
            layer.unpacked_uses = 1 + size // AT_ONCE
            size += layer.weight.numel()


@contextlib.contextmanager
def packing_meanwhile(model):
    """Pack matrices while the block waits for a person. When it ends, the one that is being packed
    is finished first."""
    layers, ended = unpacked(model), threading.Event()

    def work():
        with contextlib.suppress(RuntimeError):               # no memory: whoever uses it says so
            for layer in layers:
                if ended.is_set():
                    return
                layer.pack()

    if not layers:
        yield
        return
    thread = threading.Thread(target=work)
    try:
        thread.start()
        yield
    finally:
        ended.set()
        thread.join()
