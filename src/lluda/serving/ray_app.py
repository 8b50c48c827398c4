"""The application for a cluster of Ray's: ``serve run lluda.serving.ray_app:app model=… replicas=3``, or the same in a
config (docs/scaling.md)."""

from __future__ import annotations

from typing import Any

from lluda.serving.replicas.app_arguments import AppArguments
from lluda.serving.replicas.application import build_application


def app(arguments: dict[str, Any]) -> Any:
    """The application, of the fields of `AppArguments`. Errors as its ``read`` and ``plan``."""
    return build_application(AppArguments.read(arguments).plan())
