"""A device made of an adapter: buffers, pipelines, submissions, and what goes wrong with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import wgpu
from numpy.typing import NDArray
from wgpu.backends.wgpu_native import _api, ffi, lib

from lluda.backends.wgpu.adapter import Adapter
from lluda.backends.wgpu.recorder import Recorder, best_recorder
from lluda.backends.wgpu.wgsl.shader import Shader, Target
from lluda.errors import OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

_FEATURES = ("subgroup",)
_LIMITS = (
    "max-buffer-size",
    "max-storage-buffer-binding-size",
    "max-compute-workgroup-storage-size",
    "max-compute-invocations-per-workgroup",
    "max-compute-workgroup-size-x",
    "max-storage-buffers-per-shader-stage",
    "max-compute-workgroups-per-dimension",
)
_LARGEST_BUFFER = 1 << 30  # drivers have been wrong beyond, and nothing is gained by larger ones


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """Memory of the device; ``handle`` is wgpu's object."""

    nbytes: int
    handle: Any


class Gpu:
    """One device. Calls come from one thread at a time: ``lock`` is around each public operation of the backend.

    ``checked`` leaves wgpu's bounds checks in the kernels (tests do). ``subgroup``: the fewest threads that a subgroup
    has, None: those that the adapter says; 0: kernels without them.
    ``matrix_bytes`` is the most that a kernel is given of a matrix at once, where less than the adapter allows.
    ``binding_bytes``: the most of anything, which wgpu then sees to. ``recorder``: None takes the best there is.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        checked: bool = False,
        subgroup: int | None = None,
        matrix_bytes: int | None = None,
        binding_bytes: int | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.adapter, self.checked, self.lock = adapter, checked, threading.RLock()
        features = [name for name in _FEATURES if name in adapter.features]
        limits = {name: adapter.limits[name] for name in _LIMITS if name in adapter.limits}
        if binding_bytes is not None:
            limits["max-storage-buffer-binding-size"] = binding_bytes
        self._device = adapter.handle.request_device_sync(required_features=features, required_limits=limits)
        self._queue = self._device.queue
        most = min(limits["max-storage-buffer-binding-size"], limits["max-buffer-size"], _LARGEST_BUFFER)
        self.binding_limit = most // 256 * 256
        """Bytes of a buffer that a kernel can be given."""
        self.matrix_bytes = min(self.binding_limit, matrix_bytes or self.binding_limit)
        self.target = Target((adapter.subgroup[0] if subgroup is None else subgroup) if "subgroup" in features else 0)
        self._pipelines: dict[Shader, Any] = {}
        self._layouts: dict[str, Any] = {}
        self._handles = ffi.new("WGPUCommandBuffer[1]")
        self._lost = False
        self.recorder = recorder or best_recorder()
        self.buffers_made = 0

    def buffer(self, nbytes: int, *, readable: bool = False) -> Buffer:
        """Zeros. ``readable``: for `read`, else for kernels."""
        usage = wgpu.BufferUsage.COPY_DST
        usage |= wgpu.BufferUsage.MAP_READ if readable else wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC
        size = max(256, -(-nbytes // 16) * 16)
        return Buffer(size, self._create(size, usage, mapped=False))

    def filled(self, nbytes: int, pieces: Callable[[], Iterator[tuple[int, NDArray[np.uint8]]]]) -> Buffer:
        """Memory with each of ``pieces`` at its offset (multiples of 4, lengths too but for the last)."""
        size = max(256, -(-nbytes // 16) * 16)
        made = self._create(size, wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC, mapped=True)
        # Straight into the mapped memory: a write by the queue would copy everything once more.
        for offset, piece in pieces():
            made.write_mapped(piece, offset)
        made.unmap()
        return Buffer(size, made)

    def write(self, buffer: Buffer, offset: int, data: NDArray[Any]) -> None:
        """Before what is submitted next."""
        self._queue.write_buffer(buffer.handle, offset, data)

    def read(self, buffer: Buffer, nbytes: int, submission: int | None = None) -> NDArray[np.uint8]:
        """Wait for a ``submission`` (None: all), and copy out of a readable buffer. RuntimeError: the device is
        lost."""
        # Through the C library: wgpu-py's own method waits for all that was submitted, on a thread of its own.
        raw, size = buffer.handle._internal, -(-nbytes // 4) * 4
        status: list[int] = []
        kept = ffi.new_handle(status)
        info = ffi.new("WGPUBufferMapCallbackInfo *")
        info.mode, info.callback, info.userdata1 = lib.WGPUCallbackMode_AllowProcessEvents, _mapped, kept
        lib.wgpuBufferMapAsync(raw, wgpu.MapMode.READ, 0, size, info[0])
        self.wait(submission)
        if status != [lib.WGPUMapAsyncStatus_Success]:
            self._lost = True
            raise RuntimeError(f"{self.adapter.name} does not answer any more: a buffer was not to be read")
        found = np.frombuffer(ffi.buffer(lib.wgpuBufferGetConstMappedRange(raw, 0, size), size), np.uint8).copy()
        lib.wgpuBufferUnmap(raw)
        return found[:nbytes]

    def fetch(self, ranges: Sequence[tuple[Buffer, int, int]]) -> NDArray[np.uint8]:
        """Wait, and copy out of parts of any buffers, one behind the other: each with offset and bytes, multiples of
        4."""
        total, end = sum(nbytes for _, _, nbytes in ranges), 0
        target, encoder = self.buffer(total, readable=True), self.encoder()
        for buffer, offset, nbytes in ranges:
            encoder.copy_buffer_to_buffer(buffer.handle, offset, target.handle, end, nbytes)
            end += nbytes
        return self.read(target, total, self.submit(encoder.finish()))

    def download(self, buffer: Buffer, nbytes: int | None = None) -> NDArray[np.uint8]:
        """Wait, and copy out of any buffer."""
        return np.frombuffer(self._queue.read_buffer(buffer.handle), np.uint8)[:nbytes]

    def copy(self, source: Buffer, target: Buffer, nbytes: int) -> None:
        """Behind what was submitted before."""
        encoder = self.encoder()
        encoder.copy_buffer_to_buffer(source.handle, 0, target.handle, 0, nbytes)
        self.submit(encoder.finish())

    def move(self, places: Sequence[tuple[Buffer, int, int]], nbytes: int) -> None:
        """So many bytes of each buffer from one offset to another, multiples of 4, behind what was submitted before."""
        if not nbytes:
            return
        encoder, between = self.encoder(), self.buffer(nbytes)
        for buffer, source, target in places:
            encoder.copy_buffer_to_buffer(buffer.handle, source, between.handle, 0, nbytes)
            encoder.copy_buffer_to_buffer(between.handle, 0, buffer.handle, target, nbytes)
        self.submit(encoder.finish())

    def submit(self, commands: Any) -> int:
        """Start them behind what was submitted before; the submission's number, to wait for. RuntimeError: the device
        is lost."""
        if self._lost:
            raise RuntimeError(f"{self.adapter.name} does not answer any more: nothing can be submitted")
        self._handles[0] = commands._internal
        return int(lib.wgpuQueueSubmitForIndex(self._queue._internal, 1, self._handles))

    def encoder(self) -> Any:
        """wgpu's command encoder."""
        return self._device.create_command_encoder()

    def wait(self, submission: int | None = None) -> None:
        """Until a submission, or all that was submitted, is done."""
        which = ffi.NULL if submission is None else ffi.new("WGPUSubmissionIndex *", submission)
        lib.wgpuDevicePoll(self._device._internal, True, which)

    def pipeline(self, shader: Shader) -> Any:
        """Compiled once."""
        if shader not in self._pipelines:
            _, layout = self._layout(shader.kinds)
            stage = {"module": self._module(shader.code), "entry_point": "main"}
            self._pipelines[shader] = self._device.create_compute_pipeline(layout=layout, compute=stage)
        return self._pipelines[shader]

    def group(self, shader: Shader, ranges: Sequence[tuple[Buffer, int, int]]) -> Any:
        """The bindings of a kernel: buffers with offset and bytes."""
        entries = [
            {"binding": index, "resource": {"buffer": buffer.handle, "offset": offset, "size": nbytes}}
            for index, (buffer, offset, nbytes) in enumerate(ranges)
        ]
        return self._device.create_bind_group(layout=self._layout(shader.kinds)[0], entries=entries)

    def is_lost(self) -> bool:
        """Whether the device answers no more."""
        try:
            self._queue.read_buffer(self.buffer(256).handle)
        except Exception:  # whatever a driver makes of it
            self._lost = True
        return self._lost

    def _layout(self, kinds: str) -> tuple[Any, Any]:
        if kinds not in self._layouts:
            types = {"r": "read-only-storage", "w": "storage"}
            entries = [
                {"binding": index, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": types[kind]}}
                for index, kind in enumerate(kinds)
            ]
            group = self._device.create_bind_group_layout(entries=entries)
            self._layouts[kinds] = group, self._device.create_pipeline_layout(bind_group_layouts=[group])
        return self._layouts[kinds]  # type: ignore[no-any-return]

    def _module(self, code: str) -> Any:
        if self.checked:
            return self._device.create_shader_module(code=code)
        # Without bounds checks and loop counters, since the kernels are ours; only wgpu's C interface offers that.
        text = code.encode()
        held = ffi.new("char[]", text)
        source = ffi.new("WGPUShaderSourceWGSL *")
        source.chain.sType = lib.WGPUSType_ShaderSourceWGSL
        source.code.data, source.code.length = held, len(text)
        description = ffi.new("WGPUShaderModuleDescriptor *")
        description.nextInChain = ffi.cast("WGPUChainedStruct *", source)
        raw = lib.wgpuDeviceCreateShaderModuleTrusted(self._device._internal, description, 0)
        assert raw != ffi.NULL, "wgpu refused a kernel"
        return _api.GPUShaderModule("", raw, self._device)

    def _create(self, size: int, usage: int, *, mapped: bool) -> Any:
        with translated(f"{size:,} bytes on {self.adapter.name}"):
            made = self._device.create_buffer(size=size, usage=usage, mapped_at_creation=mapped)
        self.buffers_made += 1
        return made


@ffi.callback("void(WGPUMapAsyncStatus, WGPUStringView, void *, void *)")  # type: ignore[untyped-decorator]
def _mapped(status: int, _message: Any, kept: Any, _nothing: Any) -> None:
    ffi.from_handle(kept).append(status)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """wgpu's error that memory did not suffice for ``what`` as OutOfMemory."""
    try:
        yield
    except wgpu.GPUOutOfMemoryError as error:
        raise OutOfMemory(
            f"the GPU's memory does not hold {what}; load with a smaller max_context, take --weights packed, or place "
            "fewer components on wgpu"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the device's memory did not suffice."""
    return isinstance(error, OutOfMemory | wgpu.GPUOutOfMemoryError)
