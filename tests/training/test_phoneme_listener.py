"""The listener learns from true sound alone; what is made learns from the listener."""

import torch

from training.phoneme_listener import PhonemeListener
from training.sound_set import PLACE


def test_each_loss_teaches_its_own_side():
    torch.manual_seed(0)
    listener, spoken = PhonemeListener(5), torch.randint(5, (2, 24))
    true, made = torch.randn(2, 20 * PLACE + 100), torch.randn(2, 20 * PLACE + 100, requires_grad=True)
    own, other = listener.losses(true, made, spoken)
    other.backward(retain_graph=True)
    assert made.grad.abs().sum() > 0
    assert all(one.grad is None for one in listener.parameters())
    made.grad = None
    own.backward()
    assert made.grad is None
    assert all(one.grad is not None for one in listener.parameters())


def test_true_sound_is_heard_as_itself():
    """Made as the true sound is, only the phonemes' cross entropy is left, and without known ones nothing counts."""
    torch.manual_seed(0)
    listener, sound = PhonemeListener(5), torch.randn(1, 10 * PLACE)
    spoken = torch.randint(5, (1, 10))
    own, other = listener.losses(sound, sound, spoken)
    torch.testing.assert_close(own, other)
    logits, _ = listener(sound)
    assert logits.shape == (1, 10, 5)
    expected = torch.nn.functional.cross_entropy(logits[0], spoken[0])
    torch.testing.assert_close(own, expected)
