"""Where the settings of media are, and what they mean, against transformers' own reading of the same files."""

from __future__ import annotations

import json
from itertools import product

import pytest

from lluda.config.audio import RELEASED_MEL, MelConfig
from lluda.config.vision import RELEASED_VISION, VisionInputConfig
from lluda.errors import CorruptFile, UnsupportedModel
from lluda.weights.media_settings import read_media_settings
from tests.models.test_thinker import OMNI

SECTIONS = ("feature_extractor", "audio_processor", "image_processor", "video_processor")
PLAIN, VIDEO, PROCESSOR = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("sections", [(), *((name,) for name in SECTIONS), SECTIONS], ids="+".join)
@pytest.mark.parametrize(("plain", "video"), list(product((True, False), repeat=2)))
def test_the_file_that_counts_is_transformers_choice(tmp_path, plain, video, sections):
    pytest.importorskip("transformers", reason="transformers is the reference here")
    from transformers.feature_extraction_utils import FeatureExtractionMixin
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.video_processing_utils import BaseVideoProcessor

    files = {PROCESSOR: {name: {"from": name} for name in sections}} if sections else {}
    files |= {PLAIN: {"from": PLAIN}} if plain else {}
    files |= {VIDEO: {"from": VIDEO}} if video else {}
    write(tmp_path, files)
    readers = {
        "audio": FeatureExtractionMixin.get_feature_extractor_dict,
        "image": ImageProcessingMixin.get_image_processor_dict,
        "video": BaseVideoProcessor.get_video_processor_dict,
    }
    for medium, read in readers.items():
        try:
            expected = read(tmp_path)[0]
        except OSError:
            expected = {}
        found = read_media_settings(tmp_path, medium)
        assert found.raw == expected
        assert (found.raw.get("from") or PLAIN) in found.where


def test_the_nested_form_of_transformers_5_means_what_the_flat_one_of_4_did(released_configs, tmp_path):
    """Both written by transformers: the released file, and its processors' own dictionaries as sections."""
    transformers = pytest.importorskip("transformers", reason="transformers is the reference here")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    (source,) = released_configs.glob("*Instruct/preprocessor_config*.json")
    flat = json.loads(source.read_text())
    pictures = Qwen2VLImageProcessorPil.from_dict(dict(flat)).to_dict()
    # 5.23 writes its video processor so, which needs torchvision to be made here.
    video = {key: value for key, value in pictures.items() if key != "image_processor_type"}
    video |= {"video_processor_type": "Qwen2VLVideoProcessor", "do_sample_frames": False, "max_frames": 768}
    sound = transformers.WhisperFeatureExtractor.from_dict(dict(flat)).to_dict()
    sections = {"feature_extractor": sound, "image_processor": pictures, "video_processor": video}
    write(tmp_path, {PROCESSOR: json.loads(json.dumps(sections | {"processor_class": "Qwen3OmniMoeProcessor"}))})
    found = {medium: read_media_settings(tmp_path, medium).raw for medium in ("audio", "image", "video")}
    assert MelConfig.from_hf(found["audio"]) == MelConfig.from_hf(flat) == RELEASED_MEL
    assert VisionInputConfig.from_hf(found["image"]) == VisionInputConfig.from_hf(flat) == RELEASED_VISION
    assert VisionInputConfig.for_video(found["video"]) == VisionInputConfig.for_video(flat)


def test_a_section_that_is_no_object_is_refused(tmp_path):
    write(tmp_path, {PROCESSOR: {"image_processor": 5}})
    with pytest.raises(CorruptFile, match=r"processor_config\.json: image_processor: must be a JSON object"):
        read_media_settings(tmp_path, "image")


SIZES = (None, {"shortest_edge": 4096, "longest_edge": 65_536}, {"shortest_edge": 4096}, {"min_pixels": 4096})


@pytest.mark.parametrize(("size", "least", "most"), list(product(SIZES, (None, 1024), (None, 90_000))))
def test_sizes_of_pictures_combine_as_in_transformers(size, least, most):
    """The size that transformers' image processor of the same settings has. Where one of the two edges is missing it
    fails, at once or at its first picture; we do when it is read."""
    pytest.importorskip("transformers", reason="transformers is the reference here")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    named = {"size": size, "min_pixels": least, "max_pixels": most}
    raw = {"patch_size": 16, **{key: value for key, value in named.items() if value is not None}}
    try:
        expected = Qwen2VLImageProcessorPil.from_dict(json.loads(json.dumps(raw)))
    except ValueError:
        expected = None
    if expected is None or expected.size.shortest_edge is None or expected.size.longest_edge is None:
        with pytest.raises(CorruptFile, match=r"size must hold shortest_edge and longest_edge \(pixels\)"):
            VisionInputConfig.from_hf(raw)
        return
    found = VisionInputConfig.from_hf(raw)
    assert (found.min_pixels, found.max_pixels) == (expected.size.shortest_edge, expected.size.longest_edge)
    assert list(found.image_mean) == list(expected.image_mean)
    assert list(found.image_std) == list(expected.image_std)


def test_without_settings_of_pictures_the_released_ones_hold():
    assert VisionInputConfig.from_hf({}) == VisionInputConfig.from_hf({"feature_size": 128}) == RELEASED_VISION
    assert VisionInputConfig.for_video({}) == RELEASED_VISION
    assert MelConfig.from_hf({"patch_size": 16}) == RELEASED_MEL


def test_frames_have_the_size_of_the_processor_not_of_the_file():
    """transformers 5.23 passes Qwen3OmniMoeProcessor.videos_kwargs' size (128 and 768 times 32 x 32) at every call, so
    that of the file is never used (seen with torchvision: 4 frames of 1000 x 1000 become a grid of 2 x 54 x 54 whatever
    ``size``, ``min_pixels`` and ``max_pixels`` say). Mean and deviation of the file are used."""
    raw = {"patch_size": 16, "size": {"shortest_edge": 1024, "longest_edge": 4096}, "image_mean": [0, 0.25, 0]}
    found = VisionInputConfig.for_video(raw | {"image_std": [1, 1, 1]})
    assert (found.min_frame_pixels, found.max_frame_pixels) == (128 * 32 * 32, 768 * 32 * 32)
    assert (found.image_mean, found.image_std) == ((0.0, 0.25, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("switch", ["do_sample_frames", "cap_pixels_per_frame"])
def test_frames_that_the_processor_would_choose_are_refused(switch):
    VisionInputConfig.for_video({switch: False})
    with pytest.raises(UnsupportedModel, match=f"{switch} True is not supported; supported: false"):
        VisionInputConfig.for_video({switch: True})


def test_numbers_that_the_encoders_fix_must_be_theirs_and_may_be_left_out():
    from lluda.config.model import ModelConfig

    vision, audio = (getattr(ModelConfig.from_hf(OMNI).omni, name) for name in ("vision", "audio"))
    for read in (VisionInputConfig.from_hf, VisionInputConfig.for_video):
        with pytest.raises(CorruptFile, match=r"merge_size must be the spatial_merge_size .*expected 2, found 4"):
            read({"merge_size": 4}, "x.json", vision)
        assert read({}, "x.json", vision).patch_size == vision.patch_size
    with pytest.raises(CorruptFile, match=r"feature_size must be the num_mel_bins .*expected 128, found 80"):
        MelConfig.from_hf({"feature_size": 80}, "x.json", audio)
    assert MelConfig.from_hf({}, "x.json", audio).num_mel_bins == 128
