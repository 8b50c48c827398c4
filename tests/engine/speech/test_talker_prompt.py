"""The talker's prompt against what transformers' own generate gives its talker: rows and positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lluda.engine.kv_cache import CacheOptions
from lluda.engine.runner import Runner
from lluda.engine.speech.talker_prompt import CapturedHiddenStates
from lluda.inputs.media.media_parts import MediaPart
from tests.engine.speech.test_speech import ASSISTANT, IM_END, SYSTEM, USER, model, reference, rows_of, tensors, turn
from tests.inputs.media.synthetic_video import write_video
from tests.models.test_thinker import picture, reference_arguments, sound, video

__all__ = ["model", "reference", "tensors"]  # fixtures


def spoken_video():
    """A video with its audio track."""
    return MediaPart("video", "spoken.mkv", {"fps": 2.0, "use_audio": True}, "spoken video")


PROMPTS = {
    "sound": [*turn(USER, 2, sound(1.4), 3)],
    "picture": [*turn(USER, picture(64, 96), 4)],
    "video": [*turn(USER, 3, video(4, 2.0), 2)],
    "sound and video": [*turn(USER, sound(1.1), video(3, 1.3), 3)],
    "video with its own sound": [*turn(USER, 2, spoken_video(), 3)],
    "two user turns": [*turn(USER, picture(96, 64), 2), *turn(ASSISTANT, 4), *turn(USER, sound(0.7), video(2, 1.0), 3)],
    "system turn": [*turn(SYSTEM, 5), *turn(USER, 4, picture(64, 64), sound(0.5))],
}


@pytest.fixture
def given(reference):
    """What the reference's talker is given first."""
    found = {}

    def keep(_module, _positional, named):
        found.setdefault("rows", named["inputs_embeds"][0].clone())
        found.setdefault("positions", named["position_ids"][-3:, 0].float())

    handle = reference.talker.model.register_forward_pre_hook(keep, with_kwargs=True)
    yield found
    handle.remove()


@torch.inference_mode()
@pytest.mark.parametrize("pieces", PROMPTS.values(), ids=PROMPTS)
def test_rows_and_positions_are_those_of_transformers(model, reference, given, tmp_path, pieces):
    thinker, voice, reader = model
    pieces = [_written(piece, tmp_path) for piece in pieces]
    prompt, mix = rows_of(reader, pieces)
    own_sound = any(part.options.get("use_audio") for part in mix)
    sequences, _ = reference.generate(
        **reference_arguments(reader, mix, prompt),
        speaker="Chelsie",
        return_audio=True,
        use_audio_in_video=own_sound,
        # Corrected: transformers 5.23 tells only its thinker, so that its talker counts such a video as text.
        talker_use_audio_in_video=own_sound,
        thinker_max_new_tokens=3,
        thinker_do_sample=False,
        thinker_eos_token_id=IM_END,
        talker_do_sample=False,
        talker_max_new_tokens=2,
    )
    media = CapturedHiddenStates(prompt, voice.talker.config.accept_hidden_layer)
    runner = Runner(thinker, CacheOptions(4096, dtype="f32"))
    runner.prefill(prompt, runner.new_cache(), media.observer)
    built = voice.prompts.build(prompt, media, int(sequences[0, len(prompt)]), "chelsie")
    positions = torch.arange(len(built.rows)).expand(3, -1) if built.positions is None else built.positions
    torch.testing.assert_close(built.rows, given["rows"], rtol=0, atol=1e-4)
    torch.testing.assert_close(positions.float(), given["positions"], rtol=0, atol=1e-3)


def _written(piece, folder):
    if not isinstance(piece, MediaPart) or not isinstance(piece.source, str):
        return piece
    frames = np.random.default_rng(0).integers(0, 256, (20, 64, 96, 3), dtype=np.uint8)
    path = write_video(folder / piece.source, list(frames), rate=10, sound=True)
    return MediaPart(piece.kind, str(path), piece.options, piece.where)
