"""Where in its text the talker is: the targets, what the taught heads look at, and the mistakes it is shown."""

import torch

from training import train_talker
from training.code_set import CodeSet
from training.config import read_config
from training.prompts import PromptWriter
from training.sound_set import Clip
from training.talker_examples import examples_of
from training.train_talker import OPENING, TAUGHT, Batch, TalkerTrainer, mistaken

SPEECH = read_config()[1].omni.speech


def trainer():
    torch.manual_seed(0)
    return TalkerTrainer(SPEECH, torch.randn(768, 256))


def batch(frames=6, user=0):
    ids = torch.tensor([[5, 6, 7, SPEECH.tokens.tts_eos, *[SPEECH.tokens.tts_pad] * (frames - 3)]])
    return Batch(
        text=ids,
        codes=torch.randint(256, (1, frames, SPEECH.talker.num_code_groups)),
        own=torch.ones(1, frames, dtype=torch.bool),
        spoken=torch.tensor([[0, 0, 1, 1, 2, 3, 3][: frames + 1]]),
        speaker=torch.tensor([SPEECH.talker.speakers["lark"]]),
        user=torch.full((1, user), 9),
        heard=torch.zeros(1, user, dtype=torch.bool),
    )


def test_examples_say_which_token_each_frame_speaks():
    writer = PromptWriter()
    texts = ["It is blue.", "It is red."]
    clips = [Clip(text, "lark", "train", 10 * n, 10, 0.8, (0.08, 0.24, 0.4)) for n, text in enumerate(texts)]
    clips.append(Clip("It is blue.", "rms", "train", 20, 10))
    codes = CodeSet(torch.zeros(8, 30, dtype=torch.uint8), clips)
    (found,) = examples_of(codes, "train", {"lark": 1, "rms": 2}, (-1, -2), "cpu")
    for text, frames, spoken, speaker in zip(found.text, found.frames, found.spoken, found.speaker, strict=True):
        if speaker == 2:
            assert set(spoken.tolist()) == {-1}
            continue
        ids = [one for one in text.tolist() if one >= 0]
        clips = int((frames >= 0).sum()) // 10
        assert spoken[:2].tolist() == [0, 0]
        assert spoken[10 * clips :].tolist() == [len(ids)] * (len(spoken) - 10 * clips)
        assert spoken.diff().min() >= 0
        words = [writer.tokenizer.decode([ids[index]]) for index in spoken[:7].tolist()]
        assert [word.strip() for word in words[3:5]] == ["is", "is"]


def test_the_taught_heads_look_at_the_token_spoken_next():
    """The loss is what is missing to a head that gives all to the wanted row."""
    one, seen = trainer(), batch(user=2)
    for layer in one.talker.model.layers:
        layer.self_attn.shares = torch.full((1, 2 + OPENING + 6, 2 + OPENING + 6), -50.0)
    first = 2 + OPENING - 1
    for index in TAUGHT:
        for row, token in enumerate(seen.spoken[0].tolist()):
            one.talker.model.layers[index].self_attn.shares[0, first + row, first + token] = -0.5
    known = torch.ones(1, 7, dtype=torch.bool)
    assert one.place(seen, known).item() == 0.5


def test_a_taught_head_s_shares_are_its_attention():
    one, seen = trainer(), batch()
    rows = one.rows(seen, None, seen.codes)
    one.talker(rows)
    for index, layer in enumerate(one.talker.model.layers):
        attention = layer.self_attn
        assert attention.watched == (index in TAUGHT)
        if attention.watched:
            torch.testing.assert_close(attention.shares.exp().sum(-1), torch.ones(1, rows.shape[1]))
            assert attention.shares.exp().triu(1).max() == 0


def test_learning_moves_the_taught_heads():
    one, seen = trainer().train(), batch()
    optimizer = torch.optim.Adam(one.parameters(), 3e-3)
    values = []
    for _ in range(12):
        losses = one(seen, None, seen.codes)
        optimizer.zero_grad()
        (losses["place"] + losses["word"]).backward()
        optimizer.step()
        values.append((losses["place"].item(), losses["word"].item()))
    assert values[-1][0] < 0.7 * values[0][0]
    assert values[-1][1] < 0.7 * values[0][1]


def test_mistakes_are_drawn_ones_random_ones_and_other_frames(monkeypatch):
    for name in ("_WRONG_FRAME", "_OTHER_FRAME"):
        monkeypatch.setattr(train_talker, name, 0.0)
    codes, drawn, own = torch.zeros(4, 50, 8).long(), torch.ones(4, 50, 8).long(), torch.ones(4, 50).bool()
    assert torch.equal(mistaken(codes, drawn, torch.tensor(0.0), own, 256), codes)
    assert torch.equal(mistaken(codes, drawn, torch.tensor(1.0), own, 256), drawn)
    some = mistaken(codes, drawn, torch.tensor(0.5), own, 256).float().mean((0, 1))
    assert torch.equal(some, some[:1].expand(8))  # whole frames
    assert 0.3 < some[0] < 0.7


def test_drawn_codes_follow_the_talker_s_own_expectation():
    """Where the heads are sure of a code, that code is drawn."""
    one, seen = trainer().eval(), batch()
    with torch.no_grad():
        one.talker.model.norm.weight.fill_(1.0)
        _, logits, found, _ = one.predicted(seen, None, seen.codes)
        one.talker.codec_head.weight.mul_(1000)
        for head in one.talker.code_predictor.lm_head:
            head.weight.mul_(1000)
        likeliest = torch.cat((logits[:, :-1, :256].flatten(0, 1).argmax(-1)[:, None], found.argmax(-1)), 1)
    assert torch.equal(one.drawn(seen, None), likeliest.view_as(seen.codes))
