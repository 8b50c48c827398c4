"""By which names the model may be asked for."""

from __future__ import annotations

from collections.abc import Sequence

from lluda.serving.http.errors import ApiError


class ModelNames:
    """The names given by the user, else the repository's; besides them the repository's last part."""

    def __init__(self, repository: str, served: Sequence[str] = ()) -> None:
        last = repository.rstrip("/").rpartition("/")[2].removesuffix(".gguf") or repository
        self.served = tuple(served) or (last,)
        self._accepted = {*self.served, repository, last}

    @property
    def first(self) -> str:
        """What answers call it."""
        return self.served[0]

    def check(self, name: str) -> None:
        """ApiError 404 ``model_not_found``."""
        if name in self._accepted:
            return
        raise ApiError(
            404,
            "model_not_found",
            f"there is no model {name[:80]!r} here; this server has {', '.join(self.served)}",
            param="model",
        )
