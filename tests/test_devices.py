"""The golden data on every device there is: pixels, prompt, logits, answers, losses, gradients."""
import pytest
import torch

from artgpt4 import ArtGPT4
from conversation.rounds import Conversation
from conversion.formats import their_names
from tests.devices import on_every_device

TOLERANCE = 2e-5


@pytest.fixture(autouse=True)
def whole_float32():
    """cuDNN's convolutions round float32 to 10 bits (TF32) unless they are told not to."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def close(found, expected, tolerance=TOLERANCE):
    """Whether the largest absolute difference is within the tolerance."""
    return (found.cpu() - expected).abs().max().item() <= tolerance


def golden_loss(model, expected):
    """The first of stage 2's golden losses."""
    return model.loss(expected["pixels"], expected["captions"], expected["prompt_list"][0],
                      end="###", max_text_tokens=24)


@on_every_device
@torch.no_grad()
def test_image_vectors_and_logits_reach_the_golden_data(weights, expected, device):
    model = ArtGPT4.from_pretrained(weights["artgpt4"], device)
    image_embeds = model.encode_image(expected["pixels"])
    assert image_embeds.device.type == device
    assert close(image_embeds, expected["image_embeds"])
    embeds = model.embed_prompt(expected["chat_prompt"], image_embeds[:1])
    assert close(model.llama(embeds)[0, -8:], expected["chat_logits_last_8"])


@on_every_device
def test_greedy_answers_are_the_golden_ones(weights, expected, device):
    model = ArtGPT4.from_pretrained(weights["artgpt4"], device)
    with torch.no_grad():
        embeds = model.embed_prompt(expected["chat_prompt"],
                                    expected["image_embeds"][:1].to(device))
    ids = [token.item() for token in
           model.generate_ids(embeds, max_new_tokens=24, temperature=0)]
    assert ids == expected["greedy_ids"].tolist()


@on_every_device
def test_losses_and_gradients_reach_the_golden_data(weights, expected, device):
    model = ArtGPT4.from_pretrained(weights["artgpt4"], device)
    model.freeze()
    loss = golden_loss(model, expected)
    assert close(loss.detach(), expected["stage2_losses"][0])
    loss.backward()
    for name in model.trainable_names():
        golden = expected[f"stage2_grad.{their_names('artgpt4', name)[0]}"]
        found = model.get_parameter(name).grad
        assert close(found, golden, TOLERANCE * golden.abs().max()), name


@on_every_device
@pytest.mark.parametrize("precision", [{"dtype": torch.bfloat16}, {"dtype": torch.float16},
                                       {"int8": True, "vision_int8": True}], ids=str)
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


@on_every_device
def test_a_conversation_with_a_seed_repeats_itself(weights, device):
    model, answers = ArtGPT4.from_pretrained(weights["artgpt4"], device), []
    for _ in range(2):
        talk = Conversation(model, seed=7, max_new_tokens=12)
        answers.append("".join(talk.answer("Hello")))
    assert answers[0] == answers[1] != ""
