"""artgpt4.py alone, and its weights on disk: loading, saving, mapping."""
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import artgpt4
from artgpt4 import ArtGPT4, Config, LlamaConfig, QFormerConfig, ViTConfig
from common.files import load_tokenizer, save_adapter
from gallery.pretrain import save_pretrained


def test_the_file_alone_loads_answers_and_trains(tmp_path):
    root = Path(artgpt4.__file__).parent
    shutil.copy(root / "artgpt4.py", tmp_path)
    shutil.copytree(root / "weights" / "tiny", tmp_path / "weights" / "tiny")
    program = """
import torch
from PIL import Image
from artgpt4 import ArtGPT4, IMAGE_SLOT, chat_prompt, instruction_prompt, preprocess
model = ArtGPT4.from_pretrained("weights/tiny", dtype=torch.float32)
pixels = preprocess(Image.new("RGB", (300, 200), "navy"), model.config.image_size)[None]
with torch.no_grad():
    image_embeds = model.encode_image(pixels)
    embeds = model.embed_prompt(chat_prompt([f"{IMAGE_SLOT} What is this?"]), image_embeds)
text = "".join(model.generate(embeds, max_new_tokens=8, temperature=0))
parameters = model.freeze()
model.loss(pixels, ["a calm sea"], instruction_prompt("Describe."), "###", 160).backward()
assert all(parameter.grad is not None for parameter in parameters)
print(tuple(image_embeds.shape), len(text) > 0, len(parameters))
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True,
                         text=True, env={"PATH": "", "OMP_NUM_THREADS": "1"})
    config = ArtGPT4.from_pretrained(root / "weights" / "tiny").config
    shape = (1, config.qformer.queries, config.llama.hidden_size)
    trainable = len(ArtGPT4.from_pretrained(root / "weights" / "tiny").trainable_names())
    assert run.stdout == f"{shape} True {trainable}\n", run.stderr


def test_saving_and_loading_change_nothing(model, tmp_path):
    save_pretrained(model, tmp_path / "once")
    again = ArtGPT4.from_pretrained(tmp_path / "once")
    save_pretrained(again, tmp_path / "twice")
    assert all(
        torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items()
    )
    files = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert files == [
        "adapter.safetensors",
        "config.json",
        "llama.safetensors",
        "tokenizer.model",
        "vision.safetensors",
    ]
    for file in files:
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


def test_a_saved_adapter_brings_its_model_back(model, weights, tmp_path):
    save_adapter(model, tmp_path / "adapter.safetensors")
    other = ArtGPT4.from_pretrained(weights["start"])
    other.load_adapter(tmp_path / "adapter.safetensors")
    assert all(
        torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items()
    )


def test_loading_maps_the_weights_and_copies_none(tmp_path, weights):
    config = Config(28, 1e-5, 0, ViTConfig(88, 1, 1, 96), QFormerConfig(64, 1, 1, 96, 4),
                    LlamaConfig(1024, 4096, 8, 8, 8, vocab_size=1000))
    with torch.device("meta"):
        model = ArtGPT4(config, load_tokenizer(weights["start"] / "tokenizer.model", config))
    save_pretrained(model.to_empty(device="cpu").bfloat16(), tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size > 270e6
    anonymous = subprocess.run([sys.executable, "-c", f"""
import re
import torch
from artgpt4 import ArtGPT4
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = anonymous()
model = ArtGPT4.from_pretrained({str(tmp_path)!r})
print(anonymous() - before)
"""], capture_output=True, text=True, check=True).stdout
    assert int(anonymous) < 0.1 * size
