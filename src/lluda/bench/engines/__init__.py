"""The engines that can be measured, one module each; none is imported before its turn in its own process."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import metadata

from lluda.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Engine:
    """``module`` has ``open_session(job)``; ``package`` is what it imports, ``distribution`` what pip calls that.
    ``speech`` has the ``open_session(job)`` of an engine that speaks."""

    module: str
    package: str
    distribution: str
    speech: str | None = None

    @property
    def installed(self) -> bool:
        """Whether the package can be found (it is not imported)."""
        return importlib.util.find_spec(self.package) is not None

    @property
    def version(self) -> str | None:
        """The installed version; None where there is none."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None


ENGINES = {
    "lluda": Engine("lluda.bench.engines.lluda", "lluda", "lluda", "lluda.bench.engines.lluda_speech"),
    "transformers": Engine(
        "lluda.bench.engines.transformers", "transformers", "transformers", "lluda.bench.engines.transformers_speech"
    ),
    "llama.cpp": Engine("lluda.bench.engines.llama_cpp", "llama_cpp", "llama-cpp-python"),
    "mistralrs": Engine("lluda.bench.engines.mistralrs", "mistralrs", "mistralrs"),
}
PEERS = ("transformers", "llama.cpp", "mistralrs")


def require_peer(name: str) -> str:
    """``name`` if it is a peer's; InvalidRequest otherwise."""
    if name not in PEERS:
        raise InvalidRequest(f"peer {name!r:.40} does not exist; choose from {', '.join(PEERS)}")
    return name
