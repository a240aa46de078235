"""gallery/pretrain.py: a few steps of both sides at the real sizes, and the folder written."""
import pytest
import torch

from artgpt4 import IMAGE_MARK, ArtGPT4
from common.answering import answers
from gallery import pretrain

FLAGS = ("--vision-steps 2 --vision-batch 4 --pictures 6 --language-steps 2 --language-batch 2 "
         "--out").split()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder that a pre-training of a few steps writes."""
    out = tmp_path_factory.mktemp("pretrain") / "tiny"
    pretrain.main(pretrain.command_line().parse_args([*FLAGS, str(out)]))
    return out


@pytest.fixture
def own_threads():
    """A test may set the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_pre_training_moves_both_sides_alone_and_writes_a_folder_that_loads(written):
    model = ArtGPT4.from_pretrained(written, dtype=torch.float32)
    assert model.config == pretrain.TINY
    assert model.tokenizer.get_piece_size() == pretrain.TINY.llama.vocab_size
    torch.manual_seed(42)
    before = ArtGPT4(pretrain.TINY, model.tokenizer)
    trained = dict(model.named_parameters())
    # Moved by more than the rounding to half precision:
    moved = {name for name, parameter in before.named_parameters()
             if not torch.allclose(trained[name], parameter, atol=2e-4, rtol=2e-3)}
    assert {"vit.blocks.0.attn.qkv.weight", "qformer.queries", "llama.embed.weight"} <= moved
    assert not any(".adapter." in name or name.startswith("proj.") for name in moved)


def test_the_sides_one_by_one_write_the_same_bytes_as_both_at_once(written, tmp_path, own_threads):
    args = pretrain.command_line().parse_args([*FLAGS, str(tmp_path)])
    pretrain.pretrain_side("vision", args)
    assert [file.name for file in tmp_path.iterdir()] == ["vision.safetensors"]
    pretrain.pretrain_side("language", args)
    assert len(list(tmp_path.iterdir())) == 5
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (written / file.name).read_bytes(), file.name


def test_the_written_folder_answers_about_a_picture(written):
    model = ArtGPT4.from_pretrained(written, dtype=torch.float32)
    size = pretrain.TINY.image_size
    with torch.inference_mode():
        image_embeds = model.encode_image(torch.zeros(1, 3, size, size))
        embeds = model.embed_prompt(IMAGE_MARK, image_embeds)
    assert isinstance(answers(model, embeds, max_new_tokens=3, temperature=0)[0], str)


def test_a_saved_folder_loads_as_the_same_model(written, tmp_path):
    model = ArtGPT4.from_pretrained(written)
    pretrain.save_pretrained(model, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "adapter.safetensors", "config.json", "llama.safetensors", "tokenizer.model",
        "vision.safetensors"]
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (written / file.name).read_bytes(), file.name
