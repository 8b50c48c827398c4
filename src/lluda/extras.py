"""The optional packages, by the extra of pyproject.toml that brings each, and the error where one is missing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

from lluda.errors import MissingDependency

EXTRAS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "media": {"soundfile": "soundfile", "soxr": "soxr", "av": "av", "pillow": "PIL"},
        "speakers": {"sounddevice": "sounddevice"},
        "serve": {
            "starlette": "starlette",
            "uvicorn": "uvicorn",
            "websockets": "websockets",
            "pydantic": "pydantic",
            "msgspec": "msgspec",
            "llguidance": "llguidance",
            "prometheus-client": "prometheus_client",
            "python-multipart": "python_multipart",
        },
        "ray": {"ray": "ray"},
        "wgpu": {"wgpu": "wgpu"},
        "validate": {
            "transformers": "transformers",
            "safetensors": "safetensors",
            "accelerate": "accelerate",
            "matplotlib": "matplotlib",
        },
        "bench": {"llama-cpp-python": "llama_cpp", "mistralrs": "mistralrs"},
    }
)
"""Of each extra its packages by the name that pip knows, and the module that each is imported as. An extra that
includes another (``serve`` has ``media``) lists only its own."""


def require(purpose: str, *extras: str, otherwise: str = "") -> None:
    """Find out whether all packages of ``extras`` are installed; none is imported.

    Raises:
        MissingDependency: as `missing` words it, of the first that is not.
    """
    for extra in extras:
        for module in EXTRAS[extra].values():
            if find_spec(module) is None:
                raise missing(purpose, module, otherwise=otherwise)


def missing(purpose: str, module: str, *, reason: str = "is not installed", otherwise: str = "") -> MissingDependency:
    """The error that ``purpose`` (what the user wants) needs ``module``, with the command that brings it, and what can
    be done ``otherwise``."""
    extra, package = next(
        (extra, package) for extra, packages in EXTRAS.items() for package, name in packages.items() if name == module
    )
    remedy = f"get it with: pip install 'lluda[{extra}]'" + (f"; or {otherwise}" if otherwise else "")
    return MissingDependency(f"{purpose} needs {package}, which {reason}; {remedy}")
