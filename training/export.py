"""A checkpoint in the released layout out of the stages' weights: ``python -m training.export --talker FILE … --out
FOLDER`` writes model.safetensors (BF16), config, tokenizer and generation_config, and prints the sha256 of the weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lluda.models.build import all_parameters
from lluda.parameters import ParameterSpec
from training.codec import Quantiser
from training.config import GENERATION, TOKENIZER, read_config

WEIGHTS = "model.safetensors"
_COMPONENTS = ("thinker", "talker", "code2wav")


def tensors_of(weights: Mapping[str, Path], quantiser: Path | None = None) -> dict[str, Tensor]:
    """All tensors of the checkpoint in BF16, in its order. ``weights``: files of stages by component, of stage A's
    code2wav with the ``quantiser``; a component without a file, and the vision tower, which no stage trains, get random
    values. ValueError: a tensor that the config has not, or of another shape."""
    trained = {}
    for component, path in weights.items():
        trained |= {f"{component}.{name}": value for name, value in load_file(path).items()}
    if quantiser is not None:
        trained["code2wav.code_embedding.weight"] = table_of(quantiser)
    generator, found = torch.Generator().manual_seed(0), {}
    for spec in all_parameters(read_config()[1]):
        value = trained.pop(spec.name, None)
        value = _untrained(spec, generator) if value is None else value
        if tuple(value.shape) != spec.shape:
            raise ValueError(f"{spec.name} is {list(value.shape)}, but the config says {list(spec.shape)}")
        found[spec.name] = value.bfloat16().contiguous()
    if trained:
        raise ValueError(f"the config has no {sorted(trained)[0]}: these are weights of another model")
    return found


def _untrained(spec: ParameterSpec, generator: torch.Generator) -> Tensor:
    noise = torch.randn(spec.shape, generator=generator)
    if spec.role == "norm":
        return torch.ones(spec.shape)
    return torch.zeros(spec.shape) if spec.role in ("bias", "scale") else 0.02 * noise


def table_of(quantiser: Path) -> Tensor:
    """Code2wav's table, made of stage A's quantiser; stage B has learnt its own."""
    omni = read_config()[1].omni
    assert omni is not None and omni.speech is not None
    config = omni.speech.code2wav
    found = Quantiser(config.transformer.hidden_size, config.num_quantizers, config.codebook_size)
    found.load_state_dict(load_file(quantiser))
    return found.table()


def export(tensors: Mapping[str, Tensor], out: Path) -> str:
    """Write the checkpoint of ``tensors_of``; the sha256 of its weights."""
    out.mkdir(parents=True, exist_ok=True)
    raw, _ = read_config()
    save_file(dict(tensors), out / WEIGHTS, metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    (out / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n", encoding="utf-8")
    for source in sorted(TOKENIZER.iterdir()):
        shutil.copyfile(source, out / source.name)
    return hashlib.sha256((out / WEIGHTS).read_bytes()).hexdigest()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for component in _COMPONENTS:
        parser.add_argument(f"--{component}", type=Path, help="a stage's weights")
    parser.add_argument("--quantiser", type=Path, help="makes code2wav's table, if code2wav is of stage A")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    weights = {name: path for name in _COMPONENTS if (path := getattr(options, name)) is not None}
    print(export(tensors_of(weights, options.quantiser), options.out))


if __name__ == "__main__":
    main()
