"""The native kernel library behind the cpu backend: finding it, checking that it fits, calling it (native/include).

A C interface through ctypes: no dependency on torch's C++ ABI, and calls release the interpreter lock.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, POINTER, Array, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache, partial
from pathlib import Path

from torch import Tensor

from lluda.errors import NativeLibraryError
from lluda.files.native_file import native_file

ABI_VERSION = 6
FORMAT_BF16, FORMAT_PACKED_BF16, FORMAT_Q8_0, FORMAT_Q8_0_ROWS = 0, 1, 2, 3
DTYPE_F32, DTYPE_BF16 = 0, 1
INCOMPRESSIBLE = 4
ISAS = ("amx", "avx512bf16", "avx512", "avx2", "neonbf16", "neondot", "portable")
BYTE_PRODUCTS = {"amx": "VNNI", "avx512bf16": "VNNI", "neonbf16": "I8MM", "neondot": "DotProd"}
"""The processor's products of bytes, where kernels use them for rows rounded to Q8_0."""


class WeightStruct(ctypes.Structure):
    """``lluda_weight``."""

    _fields_ = (
        ("format", c_int32),
        ("reserved", c_int32),
        ("out_features", c_int64),
        ("in_features", c_int64),
        ("values", c_void_p),
        ("bias", c_void_p),
        ("exponents", c_void_p),
        ("escape_rows", c_void_p),
        ("escape_columns", c_void_p),
        ("escape_values", c_void_p),
    )


class CacheRowStruct(ctypes.Structure):
    """``lluda_cache_row``."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("head_stride", c_int64),
        ("capacity", c_int64),
        ("position", c_int64),
    )


class AttentionStruct(ctypes.Structure):
    """``lluda_attention``."""

    _fields_ = (
        ("hidden", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("window", c_int64),
        ("norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("output_scale", c_void_p),
        ("q", POINTER(WeightStruct)),
        ("k", POINTER(WeightStruct)),
        ("v", POINTER(WeightStruct)),
        ("o", POINTER(WeightStruct)),
        ("norm_eps", c_float),
        ("qk_norm_eps", c_float),
        ("cache_dtype", c_int32),
        ("reserved", c_int32),
    )


class ResidualUnitStruct(ctypes.Structure):
    """``lluda_residual_unit``."""

    _fields_ = (
        ("channels", c_int64),
        ("taps", c_int64),
        ("dilation", c_int64),
        ("frequency1", c_void_p),
        ("amplitude1", c_void_p),
        ("frequency2", c_void_p),
        ("amplitude2", c_void_p),
        ("conv1", POINTER(WeightStruct)),
        ("conv2", POINTER(WeightStruct)),
    )


class UpsampleStruct(ctypes.Structure):
    """``lluda_upsample``."""

    _fields_ = (
        ("channels", c_int64),
        ("out", c_int64),
        ("taps", c_int64),
        ("stride", c_int64),
        ("frequency", c_void_p),
        ("amplitude", c_void_p),
        ("conv", POINTER(WeightStruct)),
        ("units", POINTER(ResidualUnitStruct)),
        ("unit_count", c_int64),
    )


class ConvNeXtStruct(ctypes.Structure):
    """``lluda_convnext``."""

    _fields_ = (
        ("channels", c_int64),
        ("inner", c_int64),
        ("taps", c_int64),
        ("dwconv", c_void_p),
        ("dwconv_bias", c_void_p),
        ("norm", c_void_p),
        ("norm_bias", c_void_p),
        ("gamma", c_void_p),
        ("pwconv1", POINTER(WeightStruct)),
        ("pwconv2", POINTER(WeightStruct)),
        ("norm_eps", c_float),
        ("reserved", c_int32),
    )


class MonoConvolutionStruct(ctypes.Structure):
    """``lluda_mono_convolution``."""

    _fields_ = (
        ("channels", c_int64),
        ("taps", c_int64),
        ("frequency", c_void_p),
        ("amplitude", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
    )


class MlpStruct(ctypes.Structure):
    """``lluda_mlp``."""

    _fields_ = (
        ("hidden", c_int64),
        ("intermediate", c_int64),
        ("norm", c_void_p),
        ("output_scale", c_void_p),
        ("gate", POINTER(WeightStruct)),
        ("up", POINTER(WeightStruct)),
        ("down", POINTER(WeightStruct)),
        ("norm_eps", c_float),
        ("reserved", c_int32),
    )


class EncoderStruct(ctypes.Structure):
    """``lluda_encoder``."""

    _fields_ = (
        ("hidden", c_int64),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("intermediate", c_int64),
        ("norm1", c_void_p),
        ("norm1_bias", c_void_p),
        ("norm2", c_void_p),
        ("norm2_bias", c_void_p),
        ("qkv", POINTER(WeightStruct)),
        ("qkv_count", c_int64),
        ("out", POINTER(WeightStruct)),
        ("fc1", POINTER(WeightStruct)),
        ("fc2", POINTER(WeightStruct)),
        ("norm1_eps", c_float),
        ("norm2_eps", c_float),
        ("gelu", c_int32),
        ("reserved", c_int32),
    )


class MoeStruct(ctypes.Structure):
    """``lluda_moe``."""

    _fields_ = (
        ("hidden", c_int64),
        ("experts", c_int64),
        ("intermediate", c_int64),
        ("shared_intermediate", c_int64),
        ("top_k", c_int64),
        ("norm", c_void_p),
        ("output_scale", c_void_p),
        ("router", c_void_p),
        ("gate", POINTER(WeightStruct)),
        ("up", POINTER(WeightStruct)),
        ("down", POINTER(WeightStruct)),
        ("shared_gate", POINTER(WeightStruct)),
        ("shared_up", POINTER(WeightStruct)),
        ("shared_down", POINTER(WeightStruct)),
        ("shared_expert_gate", c_void_p),
        ("norm_eps", c_float),
        ("normalise", c_int32),
    )


class LayerStruct(ctypes.Structure):
    """``lluda_layer``."""

    _fields_ = (("attention", POINTER(AttentionStruct)), ("mlp", POINTER(MlpStruct)), ("moe", POINTER(MoeStruct)))


class CodePredictorStruct(ctypes.Structure):
    """``lluda_code_predictor``."""

    _fields_ = (
        ("layer_count", c_int64),
        ("passes", c_int64),
        ("layers", POINTER(LayerStruct)),
        ("norm", c_void_p),
        ("heads", POINTER(WeightStruct)),
        ("embeddings", POINTER(WeightStruct)),
        ("norm_eps", c_float),
        ("reserved", c_int32),
    )


CHOOSE = CFUNCTYPE(c_int, c_void_p, c_int64)
"""``lluda_choose``."""

STRUCTS = {
    "lluda_weight": WeightStruct,
    "lluda_cache_row": CacheRowStruct,
    "lluda_attention": AttentionStruct,
    "lluda_residual_unit": ResidualUnitStruct,
    "lluda_upsample": UpsampleStruct,
    "lluda_convnext": ConvNeXtStruct,
    "lluda_mono_convolution": MonoConvolutionStruct,
    "lluda_mlp": MlpStruct,
    "lluda_encoder": EncoderStruct,
    "lluda_moe": MoeStruct,
    "lluda_layer": LayerStruct,
    "lluda_code_predictor": CodePredictorStruct,
}

_COMPUTES: dict[str, tuple[object, ...]] = {
    "lluda_pack_size": (c_void_p, c_int64, c_int64, POINTER(c_int64)),
    "lluda_pack": (c_void_p, c_int64, c_int64, c_void_p, c_int64),
    "lluda_unpack": (POINTER(WeightStruct), c_void_p),
    "lluda_embedding": (POINTER(WeightStruct), c_int64, c_void_p, c_void_p, c_int64),
    "lluda_linear": (POINTER(WeightStruct), c_int64, c_void_p, c_int64, c_void_p, c_int32, c_int64),
    "lluda_attention_block": (
        POINTER(AttentionStruct), c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_void_p,
    ),
    "lluda_encoder_block": (
        POINTER(EncoderStruct), c_int64, c_void_p, c_int64, c_void_p, c_void_p, POINTER(c_int64), c_int64,
    ),
    "lluda_conv1d": (
        POINTER(WeightStruct), c_int64, c_int64, c_int64, POINTER(c_int64), POINTER(c_void_p), c_int64, c_void_p,
        c_int32, c_int64,
    ),
    "lluda_snake_beta": (c_int64, c_int64, c_void_p, c_int32, c_int64, c_void_p, c_void_p, c_void_p, c_int64),
    "lluda_residual_unit_block": (
        POINTER(ResidualUnitStruct), c_int64, POINTER(c_int64), c_void_p, c_int64, POINTER(c_void_p),
    ),
    "lluda_upsample_block": (
        POINTER(UpsampleStruct), c_int64, POINTER(c_int64), c_void_p, c_int64, POINTER(c_void_p), POINTER(c_int32),
        c_void_p,
    ),
    "lluda_convnext_block": (
        POINTER(ConvNeXtStruct), c_int64, POINTER(c_int64), c_void_p, c_int64, POINTER(c_void_p),
    ),
    "lluda_mono_convolution_block": (
        POINTER(MonoConvolutionStruct), c_int64, POINTER(c_int64), c_void_p, c_int64, POINTER(c_void_p), c_void_p,
    ),
    "lluda_mlp_block": (POINTER(MlpStruct), c_int64, c_void_p, c_int64),
    "lluda_moe_block": (POINTER(MoeStruct), c_int64, c_void_p, c_int64, c_void_p),
    "lluda_decoder_layers": (
        POINTER(LayerStruct), c_int64, c_int64, c_void_p, c_int64, c_void_p, c_void_p, c_void_p,
    ),
    "lluda_predict_codes": (
        POINTER(CodePredictorStruct), c_int64, c_void_p, c_void_p, c_void_p, c_void_p, CHOOSE, c_void_p, c_void_p,
        c_void_p, c_void_p,
    ),
    "lluda_lm_head": (
        POINTER(WeightStruct), c_void_p, c_float, c_int64, c_void_p, c_int64, c_void_p, c_int64,
    ),
}  # fmt: skip


class NativeLibrary:
    """The loaded library. NativeLibraryError: it cannot be loaded, or does not fit this lluda."""

    def __init__(self, path: Path) -> None:
        try:
            self.functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeLibraryError(f"{path}: the native library cannot be loaded: {error}") from None
        self.path = path
        self._declare("last_error", (), c_char_p)
        self._declare("struct_size", (c_char_p,), c_int64)
        self._declare("context_isa", (c_void_p,), c_char_p)
        self._declare("context_threads", (c_void_p,))
        self._declare("context_create", (c_char_p, c_int, POINTER(c_void_p)))
        self._declare("context_destroy", (c_void_p,), None)
        self._declare("packed_view", (c_void_p, c_int64, POINTER(WeightStruct)))
        self._declare("watch_mapped_file", (c_void_p, c_int64, c_char_p, c_int), c_void_p)  # `mapped_file` calls it
        for name, arguments in _COMPUTES.items():
            self._declare(name.removeprefix("lluda_"), (c_void_p, *arguments))
        self._check_fit()

    def check(self, code: int) -> None:
        """Raise NativeLibraryError, with the library's own message, for a result other than LLUDA_OK."""
        if code:
            raise NativeLibraryError(f"native kernel: {self.functions.lluda_last_error().decode(errors='replace')}")

    def packed_view(self, packed: Tensor) -> WeightStruct:
        """The descriptor of a packed matrix, which reads ``packed``'s memory. NativeLibraryError: it breaks a rule."""
        struct = WeightStruct()
        self.check(self.functions.lluda_packed_view(packed.data_ptr(), packed.numel(), ctypes.byref(struct)))
        return struct

    def _declare(self, name: str, arguments: tuple[object, ...], result: object = c_int) -> None:
        function = getattr(self.functions, f"lluda_{name}", None)
        if function is None:
            raise self._unfit(f"it has no lluda_{name}")
        function.argtypes, function.restype = arguments, result

    def _check_fit(self) -> None:
        version = int(self.functions.lluda_abi_version())
        if version != ABI_VERSION:
            raise self._unfit(f"interface {version}, expected {ABI_VERSION}")
        sizes = {name: int(self.functions.lluda_struct_size(name.encode())) for name in STRUCTS}
        wrong = [name for name, struct in STRUCTS.items() if sizes[name] != ctypes.sizeof(struct)]
        if wrong:
            raise self._unfit(f"{', '.join(wrong)} differ")

    def _unfit(self, why: str) -> NativeLibraryError:
        return NativeLibraryError(
            f"{self.path}: the native library does not fit this lluda ({why}); build it again: make native"
        )


class NativeContext:
    """Kernels, threads and working memory of one backend: what the library's calls compute with.

    Its methods are the functions that compute, without their prefix and their context; they return a code for
    :meth:`check`. Calls from several threads take turns.

    Args:
        isa: one of ISAS, or "auto" for the best of this machine.
        threads: those that compute, the calling one included; 0: one for each CPU.

    Raises:
        NativeLibraryError: the library is not built, or the machine cannot run these kernels.
    """

    def __init__(self, isa: str = "auto", threads: int = 0) -> None:
        self.library = native_library()
        self.check = self.library.check
        functions, handle = self.library.functions, c_void_p()
        self.check(functions.lluda_context_create(isa.encode(), threads, ctypes.byref(handle)))
        for name in _COMPUTES:
            setattr(self, name.removeprefix("lluda_"), partial(getattr(functions, name), handle))
        self.isa = str(functions.lluda_context_isa(handle).decode())
        """Kernels in use: one of ISAS."""
        self.threads = int(functions.lluda_context_threads(handle))
        """Threads that compute."""
        # Not while the process exits: its threads end with it anyway.
        weakref.finalize(self, functions.lluda_context_destroy, handle).atexit = False

    def __getattr__(self, name: str) -> Callable[..., int]:
        """Every function that computes; set in ``__init__``."""
        raise AttributeError(f"the native library has no function {name}")


@cache
def native_library() -> NativeLibrary:
    """The library that was built with the package. NativeLibraryError says where it was looked for."""
    return NativeLibrary(native_file())


def sizes(numbers: Sequence[int]) -> Array[c_int64]:
    """An array of sizes."""
    return (c_int64 * len(numbers))(*numbers)


def pointers(tensors: Sequence[Tensor]) -> Array[c_void_p]:
    """An array of the addresses of tensors' first elements."""
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a tensor's first element; None for none."""
    return None if tensor is None else tensor.data_ptr()
