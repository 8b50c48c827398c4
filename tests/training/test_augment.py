"""Augmentation: what each step does to a tone whose pitch, level and length are known."""

import pytest
import torch

from lluda.config.audio import RELEASED_MEL
from lluda.inputs.media.audio_features import mel_filters
from training import augment, noises
from training.augment import RATE, Augmentation, Settings
from training.unclear import NOISES

QUIET = Settings((1, 1), 0, (40, 40), 0, (0.1, 0.6), 0, (4000, 4000), 0, 0, (0, 0), (0, 0))
"""Settings with which nothing is changed."""


def _tones(*hertz, seconds=1.0):
    time = torch.arange(int(seconds * RATE)) / RATE
    sound = torch.stack([0.3 * torch.sin(2 * torch.pi * pitch * time) for pitch in hertz])
    return sound, torch.full((len(hertz),), sound.shape[1])


def _pitch(sound):
    return torch.fft.rfft(sound * torch.hann_window(len(sound))).abs().argmax() * RATE / len(sound)


def _changed(**settings):
    return Settings(**{name: getattr(QUIET, name) for name in Settings.__dataclass_fields__} | settings)


def test_nothing_chosen_changes_nothing():
    sound, lengths = _tones(440, 880)
    got, got_lengths = Augmentation(1, settings=QUIET)(sound, lengths, RATE)
    assert torch.equal(got_lengths, lengths)
    torch.testing.assert_close(got, sound, atol=2e-2, rtol=0)


def test_speed_moves_length_and_pitch():
    sound, lengths = _tones(1000, 1000)
    got, got_lengths = augment.with_speed(sound, lengths, torch.tensor([0.8, 1.25]), 20000)
    assert got_lengths.tolist() == [20000, 12800]
    assert _pitch(got[0]) == pytest.approx(800, abs=2)
    assert _pitch(got[1, :12800]) == pytest.approx(1250, abs=2)
    assert not got[1, 12800:].any()


def test_speed_folds_nothing_back():
    # 7.5 kHz would come out at 9 kHz, above the Nyquist frequency of 8 kHz, and fold back to 7 kHz.
    sound, lengths = _tones(7500)
    got, _ = augment.with_speed(sound, lengths, torch.tensor([1.2]), RATE)
    assert got.square().mean() < 0.1 * sound.square().mean()


def test_every_second_clip_keeps_its_speed():
    sound, lengths = _tones(*[1000] * 4)
    got, got_lengths = Augmentation(1, settings=_changed(speed=(0.8, 0.8)))(sound, lengths, 2 * RATE)
    assert got_lengths.tolist() == [1.25 * RATE, RATE] * 2
    assert [round(_pitch(clip[:RATE]).item()) for clip in got] == [800, 1000] * 2


def test_a_warp_moves_all_frequencies_by_one_factor():
    generator = torch.Generator().manual_seed(1)
    even = torch.ones(64, 2, 128)
    torch.testing.assert_close(augment.warped_features(even, generator), even)
    # Edges at bands 30 and 90: 735 Hz, where bands are of even width, and 3.2 kHz, where they are of an even ratio.
    features = torch.zeros(64, 1, 128)
    features[:, :, 30:] = 1
    features[:, :, 90:] = 2
    moved = augment.warped_features(features, generator)[:, 0]
    low, high = (augment._hertz_of((moved < level).sum(1).float(), 128) for level in (0.5, 1.5))
    low, high = (found / augment._hertz_of(torch.tensor(edge), 128) for found, edge in ((low, 30), (high, 90)))
    torch.testing.assert_close(low, high, atol=0.06, rtol=0)
    assert low.min() < 0.87
    assert low.max() > 1.15


def test_a_band_is_where_its_filter_is():
    filters = torch.from_numpy(mel_filters(RELEASED_MEL)).float()
    middles = (filters * torch.linspace(0, RATE / 2, len(filters))[:, None]).sum(0) / filters.sum(0)
    found = augment._hertz_of(torch.arange(128), 128)
    torch.testing.assert_close(found[20:], middles[20:], atol=0, rtol=0.05)
    torch.testing.assert_close(augment._band_of(found, 128), torch.arange(128.0))


def test_a_stretch_changes_tempo_and_leaves_bands():
    frames = torch.tensor([300, 200, 100, 20] * 16)
    features = torch.arange(400.0)[None, :, None] * (torch.arange(400) < frames[:, None])[..., None]
    features = features.expand(-1, -1, 128).contiguous()
    got, own = augment.stretched_features(features, frames, torch.Generator().manual_seed(1))
    tempo = frames / own
    assert tempo.min() < 0.9
    assert tempo.max() > 1.1
    assert torch.equal(got[..., 0], got[..., 127])
    for clip, count, before in zip(got, own, frames, strict=True):
        assert not clip[count:].any()
        steps = clip[1:count, 0] - clip[: count - 1, 0]
        assert steps.min() >= 0  # no sound comes before what it followed
        assert clip[0, 0] == 0
        assert clip[count - 1, 0] > before - 1 - 0.06 * before - 12


def test_a_colour_is_a_smooth_curve_the_same_in_all_of_a_clip():
    frames = torch.tensor([50, 30])
    features = torch.zeros(2, 60, 128)
    got = augment.coloured_features(features, frames, torch.Generator().manual_seed(1))
    assert torch.equal(got[0, 0], got[0, 49])
    assert not got[0, 50:].any()
    assert 0.02 < got.abs().max() < 0.25
    assert (got[:, :, 1:] - got[:, :, :-1]).abs().max() < 0.02
    assert not torch.equal(got[0, 0], got[1, 0])


def test_noise_has_its_ratio_to_the_speech():
    sound, lengths = _tones(*[500] * 16)
    quieter = Augmentation(2, settings=_changed(noise_share=1.0, decibel_over_noise=(10, 10)))
    got, _ = quieter(sound, lengths, RATE)
    ratio = 10 * torch.log10(sound.square().mean(1) / (got - sound).square().mean(1))
    torch.testing.assert_close(ratio, torch.full((16,), 10.0), atol=0.7, rtol=0)


def test_low_pass_takes_what_is_above():
    sound, _ = _tones(1000, 6000)
    got = augment.low_passed(sound, torch.tensor([3400.0, 3400.0]))
    assert got[0].square().mean() == pytest.approx(float(sound[0].square().mean()), rel=0.02)
    assert got[1].square().mean() < 1e-3 * sound[1].square().mean()


def test_mu_law_has_few_steps_and_little_error():
    sound, _ = _tones(300)
    got = augment.mu_law(sound)
    assert len(got.unique()) <= 255
    assert (got - sound).abs().max() < 0.02


def test_silence_is_put_before_and_after():
    sound, lengths = _tones(440, 440)
    got, got_lengths = Augmentation(3, settings=_changed(silence_seconds=(0.5, 0.5)))(sound, lengths, 32000)
    assert got_lengths.tolist() == [32000, 32000]
    assert not got[:, :8000].any()
    torch.testing.assert_close(got[:, 8000:24000], sound, atol=2e-2, rtol=0)


def test_silence_gives_way_to_speech_where_the_size_is_short():
    sound, lengths = _tones(440)
    got, got_lengths = Augmentation(3, settings=_changed(silence_seconds=(0.5, 0.5)))(sound, lengths, 20000)
    assert got_lengths.tolist() == [20000]
    torch.testing.assert_close(got[:, 4000:], sound, atol=2e-2, rtol=0)


def test_the_same_seed_gives_the_same_sound_and_all_stays_in_range():
    sound = torch.randn(8, 12000, generator=torch.Generator().manual_seed(0)) * 0.2
    lengths = torch.tensor([12000, 11000, 9000, 8000, 6000, 5000, 4000, 3000])
    sound *= augment.within(sound, lengths)
    (one, lengths_one), (other, lengths_other) = (Augmentation(7)(sound, lengths, 30000) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(lengths_one, lengths_other)
    assert one.isfinite().all()
    assert one.abs().max() <= 1
    assert not (one * ~augment.within(one, lengths_one)).any()


def test_masks_are_the_mean_and_within_the_clip():
    features = torch.randn(3, 128, 200, generator=torch.Generator().manual_seed(0))
    frames = torch.tensor([200, 100, 20])
    features *= (torch.arange(200) < frames[:, None])[:, None]
    got = augment.masked_features(features, frames, torch.Generator().manual_seed(1))
    changed = got != features
    assert changed.any()
    assert not (changed & (torch.arange(200) >= frames[:, None])[:, None]).any()
    assert changed.float().mean() < 0.5


def test_every_kind_of_noise_can_be_heard():
    voices = torch.randn(len(NOISES), 11200, generator=torch.Generator().manual_seed(0))
    kinds = torch.arange(len(NOISES))
    sound = noises.noise_questions(kinds, 11200, RATE, voices, torch.Generator().manual_seed(1))
    level = dict(zip(NOISES, sound.square().mean(1).sqrt().tolist(), strict=True))
    assert level.pop("silence") < 1e-3
    assert all(1e-3 < one < 0.08 for one in level.values())
