"""The golden data on every device there is: logits, answers, losses, gradients, int8."""
import pytest
import torch

from artgpt4 import ArtGPT4
from common.int8 import quantised
from conversion.formats import their_names
from tests.conftest import close

DEVICES = [name for name in ("cpu", "cuda") if name == "cpu" or torch.cuda.is_available()]


@pytest.fixture(params=DEVICES)
def device(request):
    """cuDNN's convolutions round float32 to 10 bits (TF32) unless they are told not to."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield request.param
    torch.backends.cudnn.allow_tf32 = allowed


def golden_loss(model, expected):
    """The first of stage 2's golden losses."""
    return model.loss(expected["pixels"], expected["captions"], expected["prompt_list"][0],
                      end="###", max_text_tokens=24)


def test_logits_answers_losses_and_gradients_reach_the_golden_data(weights, expected, device):
    model = ArtGPT4.from_pretrained(weights["artgpt4"], device)
    with torch.no_grad():
        image_embeds = model.encode_image(expected["pixels"])
        embeds = model.embed_prompt(expected["chat_prompt"], image_embeds[:1])
        logits = model.llama(embeds)[0, -8:]
    assert image_embeds.device.type == device
    assert close(image_embeds, expected["image_embeds"])
    assert close(logits, expected["chat_logits_last_8"])
    ids = [token.item() for token in model.generate(embeds, 24, temperature=0)]
    assert ids == expected["greedy_ids"].tolist()
    model.freeze()
    loss = golden_loss(model, expected)
    assert close(loss, expected["stage2_losses"][0])
    loss.backward()
    released = {name: their_names("artgpt4", name)[0] for name in model.trainable_names()}
    assert set(released.values()) == set(expected["trainable"])
    for name, golden_name in released.items():
        golden = expected[f"stage2_grad.{golden_name}"]
        tolerance = (1e-5 if device == "cpu" else 2e-5) * golden.abs().max()
        assert close(model.get_parameter(name).grad, golden, tolerance), name


@pytest.mark.parametrize("precision", [{"dtype": torch.bfloat16}, {"dtype": torch.float16},
                                       {"prepare": quantised(True, True)}], ids=str)
def test_frozen_weights_of_any_precision_train_float32_ones(weights, expected, device, precision):
    model = ArtGPT4.from_pretrained(weights["artgpt4"], device, **precision)
    trainable = model.freeze()
    before = [parameter.detach().clone() for parameter in trainable]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0)
    loss = golden_loss(model, expected)
    assert loss.item() == pytest.approx(expected["stage2_losses"][0].item(), rel=0.02)
    loss.backward()
    optimizer.step()
    for parameter, old in zip(trainable, before, strict=True):
        assert parameter.dtype == torch.float32 and not torch.equal(parameter, old)
