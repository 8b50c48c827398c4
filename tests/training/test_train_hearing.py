"""The hearing stage on two half-second clips: it learns them, and leaves the table of tokens alone."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from training import train_hearing
from training.ctc import ctc_losses, usable
from training.heard_batches import HeardBatches
from training.heard_examples import read_heard
from training.prompts import typed_conversations
from training.stage import Limits
from training.tokenizer import FIRST_ADDED
from training.train_text import thinker_of


@pytest.fixture(scope="module")
def text_stage(tmp_path_factory):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("stages")
    save_file(thinker_of(None, "", "cpu").state_dict(), folder / "text.thinker.safetensors")
    return folder


def test_a_few_steps_lower_the_loss_and_leave_the_table(text_stage, spoken_questions, tmp_path, monkeypatch):
    monkeypatch.setattr(train_hearing, "_VALIDATE_EVERY", 6)
    heard = HeardBatches(*read_heard([spoken_questions], "train", 2, 1), "cpu", 5)
    typed = [one for one in typed_conversations(20, "train", 1, 1) if len(one)]
    limits = Limits(tmp_path, 60, steps=12, device="cpu", compiled=False)
    train_hearing.train(train_hearing.Sources(heard, heard, typed), text_stage, limits, 8, 256, 3e-3)
    before, after = (
        load_file(folder / f"{stage}.thinker.safetensors")
        for folder, stage in ((text_stage, "text"), (tmp_path, "hearing"))
    )
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "model.embed_tokens.weight" not in changed
    assert any(name.startswith("audio_tower") for name in changed)
    assert any(name.startswith("lm_head") for name in changed)
    curve = json.loads((tmp_path / "hearing.json").read_text(encoding="utf-8"))["curve"]
    assert any("exact_transcript" in point for point in curve)
    assert any("typed" in point for point in curve)


def test_a_clip_can_be_learned_by_heart(text_stage, spoken_questions):
    torch.manual_seed(1)
    heard = HeardBatches(*read_heard([spoken_questions], "train", 0, 1), "cpu", 5)
    thinker = thinker_of(text_stage, "text", "cpu")
    trainer = train_hearing.HearingTrainer(thinker, thinker.audio_tower.config.output_dim)
    optimizer = torch.optim.AdamW(trainer.parameters(), lr=3e-3)
    losses = []
    for _ in range(16):
        batch = heard.draw({"transcript": 1.0}, 8, augmented=False)
        answers, _, found, own = trainer(batch.features, batch.frames, batch.ids, batch.places)
        loss = answers + 0.1 * train_hearing.words_loss(found, own, batch.spoken, batch.spoken_count)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(answers.item())
    assert losses[-1] < 0.7 * losses[0]


def test_words_are_counted_where_there_are_any():
    # Two clips of 3 rows whose first rows say token 5; the second is a noise and has no words.
    found = torch.full((3, 2, FIRST_ADDED + 1), -10.0)
    found[0, :, 5] = found[1:, :, FIRST_ADDED] = 10.0
    found = found.log_softmax(-1)
    own, counts = torch.tensor([3, 3]), torch.tensor([1, 0])
    assert train_hearing.words_loss(found, own, torch.tensor([[5], [9]]), counts).item() == pytest.approx(0, abs=1e-4)
    assert train_hearing.words_loss(found, own, torch.tensor([[6], [9]]), counts).item() > 10


def test_ctc_is_torch_s():
    generator = torch.Generator().manual_seed(3)
    found = torch.randn(12, 4, 9, generator=generator).log_softmax(-1).requires_grad_()
    words = torch.tensor([[1, 2, 3, 3], [4, 4, 4, 0], [7, 0, 0, 0], [5, 6, 0, 0]])
    own, counts = torch.tensor([12, 7, 1, 5]), torch.tensor([4, 3, 1, 2])
    expected = functional.ctc_loss(found, words, own, counts, blank=8, reduction="none")
    got = ctc_losses(found, own, words, counts, 8)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    (wanted,) = torch.autograd.grad(expected.sum(), found, retain_graph=True)
    (gradient,) = torch.autograd.grad(got.sum(), found)
    # torch's gradient is that of the logits: it lacks the part that log_softmax takes away again.
    probabilities = found.detach().exp()
    torch.testing.assert_close(
        gradient - probabilities * gradient.sum(-1, keepdim=True),
        wanted - probabilities * wanted.sum(-1, keepdim=True),
        atol=1e-4,
        rtol=1e-4,
    )


def test_clips_with_too_few_rows_for_their_words_are_not_usable():
    words, counts = torch.tensor([[1, 1, 2], [1, 1, 2], [1, 2, 2], [1, 2, 2]]), torch.tensor([3, 3, 2, 0])
    assert usable(torch.tensor([3, 4, 2, 9]), words, counts).tolist() == [False, True, True, False]


def test_listening_comes_first():
    assert train_hearing.shares_at(0.1, 0.35) == {"transcript": 1.0}
    assert sum(train_hearing.shares_at(0.9, 0.35).values()) == pytest.approx(1)
