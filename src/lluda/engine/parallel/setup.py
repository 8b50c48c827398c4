"""What rank 0 tells the others first: how to make their share of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import Join, load_network, make_runner
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.runner import Runner
from lluda.parameters import Share


class Setup(Protocol):
    """Sent to every rank (pickled)."""

    @property
    def device(self) -> str:
        """``cuda``, of which each rank takes its own, or ``cpu``."""

    def runner(self, share: Share, join: Join) -> Runner:
        """On another rank than the first: what steps its ``share``."""


@dataclass(frozen=True, slots=True)
class CheckpointSetup:
    """A share of the folder or .gguf file ``path``, loaded as ``options`` say."""

    path: str
    options: LoadOptions

    @property
    def device(self) -> str:
        """See `Setup`."""
        return self.options.device

    def runner(self, share: Share, join: Join) -> Runner:
        """See `Setup`. Errors as `load_network`."""
        options = self.options.on_rank()
        files = ModelFiles.find(
            self.path, allow_unknown_config=options.allow_unknown_config, rope_scaling=options.rope_scaling
        )
        network, _ = load_network(files, options, share=share, join=join)
        return make_runner(files, options, network)
