"""A step as a list of launches, and their recording into wgpu's commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lluda.backends.wgpu.gpu import Buffer, Gpu
from lluda.backends.wgpu.wgsl.shader import Shader

Range = tuple[Buffer, int, int]
"""A buffer, the first byte of it, and how many."""

LateRange = Callable[[], Range]
"""One of a buffer that is replaced from time to time: looked up when commands are made."""


Copy = tuple[Buffer, Buffer, int]
"""From, to, and how many bytes."""


def whole(buffer: Buffer) -> Range:
    """All of a buffer."""
    return buffer, 0, buffer.nbytes


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel, what it is given, and its workgroups along x, y and z. It knows no objects of wgpu."""

    shader: Shader
    ranges: tuple[Range | LateRange, ...]
    grid: tuple[int, int, int]


class Commands:
    """Launches one behind the other in one pass. What wgpu needs of each is made once; `recorded` makes nothing for a
    launch, since commands cannot be used twice."""

    def __init__(self, gpu: Gpu, launches: Sequence[Launch]) -> None:
        self._gpu = gpu
        self._held = [(gpu.pipeline(each.shader), gpu.group(each.shader, _now(each.ranges))) for each in launches]
        self._table = gpu.recorder.table(
            [
                (pipeline._internal, group._internal, *each.grid)
                for (pipeline, group), each in zip(self._held, launches, strict=True)
            ]
        )

    def __len__(self) -> int:
        return len(self._held)

    def recorded(self, copies: Sequence[Copy] = ()) -> Any:
        """wgpu's command buffer, for one submission; ``copies`` come behind the launches."""
        encoder = self._gpu.encoder()
        compute = encoder.begin_compute_pass()
        self._gpu.recorder.record(compute._internal, self._table)
        compute.end()
        for source, target, nbytes in copies:
            encoder.copy_buffer_to_buffer(source.handle, 0, target.handle, 0, nbytes)
        return encoder.finish()


def _now(ranges: Sequence[Range | LateRange]) -> list[Range]:
    return [each() if callable(each) else each for each in ranges]
