"""What hearing is trained on: features as lluda makes them, prompts as lluda builds them, tasks in their shares."""

import numpy as np
import pytest
import torch

import lluda
from lluda.inputs.media.audio_features import log_mel
from training.features import LogMel
from training.heard_batches import HeardBatches, encoder_rows, learnt_targets
from training.heard_examples import TASKS, read_heard
from training.prompts import LEARNT, PAD
from training.unclear import SORRY


@pytest.fixture(scope="module")
def batches(spoken_questions):
    sound, examples = read_heard([spoken_questions], "train", 3, 1)
    return HeardBatches(sound, examples, "cpu", 5)


def _numbered(batches, task):
    """The first example of a task: its size and its number."""
    for examples in batches.examples:
        found = (examples.task == TASKS.index(task)).nonzero()
        if len(found):
            return examples, found[0]
    raise AssertionError(f"no example of {task}")


@pytest.mark.parametrize("lengths", [[16000, 9999], [4801, 320]])
def test_features_are_lluda_s(lengths):
    generator = torch.Generator().manual_seed(1)
    sound = torch.randn(2, 16000, generator=generator) * torch.tensor([[0.3], [0.01]])
    for row, length in enumerate(lengths):
        sound[row, length:] = 0
    features, frames = LogMel()(sound, torch.tensor(lengths), 120)
    assert features.shape == (2, 120, 128)
    for row, length in enumerate(lengths):
        expected = log_mel([sound[row, :length].numpy()])
        assert frames[row] == len(expected)
        np.testing.assert_allclose(features[row, : len(expected)].numpy(), expected, atol=1e-4)
        assert not features[row, len(expected) :].any()


def test_the_encoder_s_rows_are_counted_as_the_engine_does(random_checkpoint):
    from training.config import read_config
    from training.twin.audio_encoder import AudioEncoder

    frames = torch.arange(1, 801)
    expected = AudioEncoder.tokens(type("Tower", (), {"config": read_config()[1].omni.audio})(), frames)
    assert torch.equal(encoder_rows(frames), expected)


@pytest.mark.parametrize(("task", "number"), [("answer", 0), ("followed", 1), ("instructed", 0), ("transcript", 0)])
def test_a_prompt_is_the_engine_s(batches, random_checkpoint, spoken_questions, task, number):
    examples, index = _numbered(batches, task)
    batch = batches.batch(examples, index, augmented=False)
    model = lluda.load(random_checkpoint)
    order = model.tokenizer.decode(_between(batch, model))
    clip = np.fromfile(spoken_questions / "sound.i16", "<i2")[8000 * number : 8000 * number + 8000]
    content = [{"type": "audio", "audio": clip.astype(np.float32) / 32768, "sampling_rate": 16000}]
    content += [{"type": "text", "text": order}] if order else []
    messages = [{"role": "user", "content": content}]
    if task == "followed":
        said = model.tokenizer.decode(_turn_before(batch, model))
        messages[:0] = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": said},
            {"role": "assistant", "content": "Hello."},
        ]
    expected = list(model.chat_prompt(messages).ids)
    audio = model.tokenizer.id_of("<|audio_pad|>")
    found = torch.where(batch.places[0] >= 0, audio, batch.ids[0])[: len(expected)].tolist()
    assert found == expected
    rows = batch.places[0][batch.places[0] >= 0]
    assert rows.tolist() == list(range(int(encoder_rows(batch.frames)[0])))


def _between(batch, model):
    """The ids of the order typed behind the sound."""
    ids = batch.ids[0].tolist()
    start = ids.index(model.tokenizer.id_of("<|audio_end|>")) + 1
    return ids[start : ids.index(model.tokenizer.id_of("<|im_end|>"), start)]


def _turn_before(batch, model):
    """What the user typed in the turn before."""
    ids = batch.ids[0].tolist()
    end, start = (model.tokenizer.id_of(name) for name in ("<|im_end|>", "<|im_start|>"))
    second = ids.index(start, 1) + 3
    return ids[second : ids.index(end, second)]


def test_the_answer_alone_is_learned(batches):
    examples, index = _numbered(batches, "answer")
    batch = batches.batch(examples, index, augmented=True)
    targets = learnt_targets(batch.ids)
    learned = targets[targets >= 0].tolist()
    from training.prompts import writer

    assert learned == [*writer().plain("Paris."), writer().end]
    assert (
        writer().tokenizer.decode(batch.spoken[0, : batch.spoken_count[0]].tolist()) == "What is the capital of France?"
    )


def test_a_noise_has_no_words_and_is_not_understood(batches):
    examples, index = _numbered(batches, "noise")
    batch = batches.batch(examples, index.repeat(6), augmented=True)
    from training.prompts import writer

    targets = learnt_targets(batch.ids[:1])
    assert writer().tokenizer.decode(targets[targets >= 0].tolist()[:-1]) == SORRY
    assert not batch.spoken_count.any()
    assert batch.features.isfinite().all()
    assert len({int(frames) for frames in batch.frames}) > 1


def test_two_processes_write_the_same_examples(spoken_questions):
    one, two = (read_heard([spoken_questions], "train", 3, 1, jobs)[1] for jobs in (1, 2))
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first.before, second.before)
        assert torch.equal(first.after, second.after)


def test_a_batch_of_all_tasks_makes_noise_of_noises_alone(batches):
    batch = batches.draw({"noise": 0.5, "answer": 0.5}, 64, augmented=False)
    from training.prompts import writer

    targets = learnt_targets(batch.ids)
    told = [writer().tokenizer.decode(row[row >= 0].tolist()[:-1]) for row in targets]
    assert {(answer == SORRY, int(count) == 0) for answer, count in zip(told, batch.spoken_count, strict=True)} == {
        (True, True),
        (False, False),
    }
    tones = batch.features[[answer != SORRY for answer in told]]
    assert (tones[1:] - tones[:1]).abs().max() < 1e-5
    noises = batch.features[[answer == SORRY for answer in told]]
    assert (noises[1:] - noises[:1]).abs().amax((1, 2)).min() > 0.1


def test_tasks_have_their_shares(batches):
    shares = {"transcript": 0.5, "answer": 0.5}
    answered = total = 0
    for _ in range(12):
        batch = batches.draw(shares, 16, augmented=False)
        targets = learnt_targets(batch.ids)
        answered += int(((targets >= 0).sum(1) <= 5).sum())
        total += len(targets)
    assert 0.3 < answered / total < 0.7


def test_all_ids_are_tokens(batches):
    for _ in range(2):
        batch = batches.draw(dict.fromkeys(TASKS, 0.2), 16)
        ids = batch.ids % LEARNT
        assert 0 <= int(ids.min()) <= int(ids.max()) < 737
        assert (batch.ids[batch.places >= 0] == PAD).all()
