"""A checkpoint is recognised by its tensors, and is whole."""
from tests.conftest import VICUNA_SHARDS


def test_files_in_each_others_place_are_recognised(refused):
    line = refused(vit="blip2_pretrained_flant5xxl.pth")
    assert "this is BLIP-2's Q-Former; expected EVA-ViT-g" in line
    assert "this is EVA-ViT-g; expected BLIP-2's Q-Former" in refused(qformer="eva_vit_g.pth")


def test_a_language_model_that_is_no_whole_folder_is_refused(refused, checkpoints, vicuna):
    shard = checkpoints / "vicuna" / VICUNA_SHARDS[0]
    assert "give its folder, with config.json and tokenizer.model" in refused(llm=shard)
    for file, content, said in (
            ("pytorch_model.bin.index.json", "{}", "no weight_map"),
            ("config.json", "{", "not JSON"),
            ("tokenizer.model", "text", "not a sentencepiece model")):
        folder = vicuna()
        (folder / file).write_text(content)
        assert f"{file}: {said}" in refused(llm=folder)


def test_a_shard_that_an_index_names_but_is_missing_is_named(refused, vicuna):
    folder = vicuna()
    (folder / VICUNA_SHARDS[0]).unlink()
    assert f"names {VICUNA_SHARDS[0]}, which is not there" in refused(llm=folder)
