"""transformers on the same checkpoint: the reference that lluda is compared with, stage by stage.

The float64 truth is the same model with every parameter widened to float64. transformers computes norms, rotary angles
and the router's softmax in float32 whatever the dtype; lluda in float64 does not, and the two agree to 1e-7 of the
range, far below BF16's rounding (tests/evaluation/test_float64_truth.py).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lluda.errors import LludaError, MissingDependency, UnsupportedModel
from lluda.evaluation.trace import Observe, Step
from lluda.weights.checkpoint import is_gguf

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}
_LISTED = 5
_STACK_AXES = 3  # transformers keeps the experts of a layer in one parameter


class TransformersReference:
    """Implements ``Implementation``: a folder with config.json and safetensors, or a .gguf file.

    Attention is transformers' ``sdpa``, experts run as transformers chooses by default.
    """

    name = "transformers"

    def __init__(self, path: Path, dtype: str) -> None:
        """Load ``path`` in ``dtype`` (bf16, f32, f64).

        Raises:
            MissingDependency: transformers is not installed.
            UnsupportedModel: transformers cannot read it.
            LludaError: it found tensors missing or left over, so that it would not be the same model.
        """
        self.dtype = dtype
        self.version, self.model = _load(path, DTYPES[dtype])
        if dtype == "f64":
            self._eager_experts()
        decoder = self.model.model
        self._units: dict[str, nn.Module] = {
            "embeddings": decoder.embed_tokens,
            **{f"layers.{index}": layer for index, layer in enumerate(decoder.layers)},
            "norm": decoder.norm,
            "logits": self.model.lm_head,
        }
        self._observe: Observe | None = None
        for stage, module in self._units.items():
            module.register_forward_hook(self._hook(stage))

    def start(self, observe: Observe | None = None) -> Step:
        """See ``Implementation.start``."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)

        @torch.no_grad()
        def step(ids: Sequence[int]) -> Tensor:
            self._observe = observe
            try:
                output = self.model(torch.tensor([list(ids)]), past_key_values=cache, use_cache=True)
            finally:
                self._observe = None
            logits: Tensor = output.logits[0]
            return logits

        return step

    @contextmanager
    def in_float64(self) -> Iterator[TransformersReference]:
        """The truth for the weights as loaded (a BF16 model's rounded weights stay what they are).

        One unit at a time (embedding, a layer, norm, head) is widened while it runs, and in it one expert at a time,
        so the memory is that of the loaded model and of the largest dense unit in float64. Frequencies are buffers and
        stay float32, as ``from_pretrained(dtype=torch.float64)`` leaves them too.
        """
        dtype, self.dtype = self.dtype, "f64"
        experts = self._eager_experts()
        hooks = [hook for unit in self._units.values() for hook in widen_while_running(unit)]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            if experts is not None:
                self.model.set_experts_implementation(experts)
            self.dtype = dtype

    def _eager_experts(self) -> str | None:
        """Run experts by plain products (grouped ones have no float64 kernel); returns what to go back to."""
        if getattr(self.model.config, "num_experts", None) is None:
            return None
        before: str = self.model.get_experts_implementation()[""]
        self.model.set_experts_implementation("eager")
        return before

    def _hook(self, stage: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._observe is not None:
                self._observe(stage, (output[0] if isinstance(output, tuple) else output)[0])

        return hook


class _ExpertsInFloat64:
    """A stack of experts' matrices ``[experts, out, in]`` that widens the one it is asked for."""

    def __init__(self, stack: Tensor) -> None:
        self._stack = stack

    def __getitem__(self, expert: Any) -> Tensor:
        return self._stack[expert].double()


def widen_while_running(unit: nn.Module, *, recurse: bool = True) -> list[Any]:
    """Hooks that hold ``unit``'s parameters (without ``recurse``: not those of modules in it) in float64 during its
    forward pass; stacks of experts one at a time. What comes in as a float of fewer bits is widened too."""
    kept: list[tuple[nn.Parameter, Tensor]] = []
    stacks: list[tuple[nn.Module, str, nn.Parameter]] = []

    def widen(_module: nn.Module, inputs: Any) -> Any:
        for module in unit.modules() if recurse else [unit]:
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.dim() == _STACK_AXES:
                    stacks.append((module, name, parameter))
                    delattr(module, name)
                    setattr(module, name, _ExpertsInFloat64(parameter.data))
                else:
                    kept.append((parameter, parameter.data))
                    parameter.data = parameter.data.double()
        return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    def restore(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        while kept:
            parameter, data = kept.pop()
            parameter.data = data
        while stacks:
            module, name, parameter = stacks.pop()
            delattr(module, name)
            setattr(module, name, parameter)

    return [unit.register_forward_pre_hook(widen), unit.register_forward_hook(restore, always_call=True)]


def require_transformers() -> Any:
    """The package, or MissingDependency."""
    try:
        import transformers
    except ImportError as error:
        raise MissingDependency(
            f"transformers, the reference, cannot be imported ({error}); get it with: pip install 'lluda[validate]'"
        ) from None
    return transformers


def _load(path: Path, dtype: torch.dtype) -> tuple[str, Any]:
    transformers = require_transformers()
    source: dict[str, Any] = {"local_files_only": True}
    folder = path
    if is_gguf(path):
        folder, source["gguf_file"] = path.parent, path.name
    with silence(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **source)
            kind = _model_class(transformers, config)
            model, report = kind.from_pretrained(
                folder, config=config, dtype=dtype, attn_implementation="sdpa", output_loading_info=True, **source
            )
        except (ValueError, KeyError, NotImplementedError, OSError) as error:
            raise UnsupportedModel(f"{path}: transformers cannot load it: {first_line(error)}") from error
    _require_same_tensors(path, report)
    return str(transformers.__version__), model.eval()


def first_line(error: Exception) -> str:
    """Of what another library says, what fits in a message."""
    lines = str(error).strip().splitlines()
    return f"{lines[0]:.300}" if lines else type(error).__name__


def _model_class(transformers: Any, config: Any) -> Any:
    """transformers' class for the config; without q_norm and k_norm where our key ``use_qk_norm`` says false.

    transformers has no such switch: a class of its own, made before the weights are loaded, knows that they are not
    missing.
    """
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if getattr(config, "use_qk_norm", True):
        return kind

    def without_qk_norm(self: Any, config: Any) -> None:
        kind.__init__(self, config)
        for layer in self.model.layers:
            layer.self_attn.q_norm = nn.Identity()
            layer.self_attn.k_norm = nn.Identity()

    return type(f"{kind.__name__}WithoutQKNorm", (kind,), {"__init__": without_qk_norm})


def _require_same_tensors(path: Path, report: Any) -> None:
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(what) or ())
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            raise LludaError(
                f"{path}: transformers reports {what.replace('_', ' ')}: {', '.join(names[:_LISTED])}{more}; "
                "it would not compute the same model, so there is nothing to compare"
            )


@contextmanager
def silence(transformers: Any) -> Iterator[None]:
    """No progress bars and no warnings of transformers while it loads; what it was set to before comes back."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # The bar of its GGUF reader knows no switch: it is what the redirection is for.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
