"""The model that comes with lluda: tiny-omni, in the wheel or in the repository that the package runs from."""

from __future__ import annotations

import os
from pathlib import Path

from lluda.errors import ModelNotFound
from lluda.weights.checkpoint import CONFIG_NAME

TINY_OMNI = "tiny-omni"
"""A Qwen3-Omni of 8.3 million parameters, 16.7 MB: it hears, answers and speaks (models/tiny-omni/README.md)."""

FOLDER_VARIABLE = "LLUDA_TINY_OMNI"
"""The environment variable that names another folder for it."""


def tiny_omni_folder() -> Path:
    """The folder of ``tiny-omni``: that of LLUDA_TINY_OMNI if it is set, else beside the package.

    ModelNotFound: there is no model; the message says where it was looked for and how to get it.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    places = [Path(named).expanduser()] if named else _places()
    for place in places:
        if (place / CONFIG_NAME).is_file():
            return place
    if named:
        raise ModelNotFound(
            f"{TINY_OMNI}: {FOLDER_VARIABLE} is {named}, which has no {CONFIG_NAME}; set it to the model's folder, or "
            "unset it to use the model that comes with lluda"
        )
    raise ModelNotFound(
        f"{TINY_OMNI}: not beside this package (looked in {', '.join(map(str, places))}); it is the folder "
        f"models/{TINY_OMNI} of lluda's repository: set {FOLDER_VARIABLE} to a copy of it"
    )


def _places() -> list[Path]:
    """In a wheel the weights are installed with the package (native/CMakeLists.txt); in a checkout they are two
    folders above it."""
    package = Path(__file__).resolve().parents[1]
    return [package / "_models" / TINY_OMNI, package.parents[1] / "models" / TINY_OMNI]
