"""Models and modules of transformers, loaded from the checkpoint that lluda reads, and widened to float64.

The float64 truth of a validation is the reference with every parameter widened. transformers computes norms, rotary
angles and the router's softmax in float32 whatever the dtype; lluda in float64 does not, and the two agree to 1e-7 of
the range, far below BF16's rounding (tests/evaluation/test_float64_truth.py).
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lluda.errors import LludaError, UnsupportedModel
from lluda.extras import missing
from lluda.weights.checkpoint import is_gguf
from lluda.weights.saved_names import missing_prefix, released_name

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}

_LISTED, _QUOTED = 5, 300
_STACK_AXES = 3  # transformers keeps the experts of a layer in one parameter
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def require_transformers() -> Any:
    """The package, or MissingDependency."""
    try:
        import transformers
    except ImportError as error:
        raise missing("the reference", "transformers", reason=f"cannot be imported ({error})") from None
    return transformers


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


def load_text_model(path: Path, dtype: str) -> Any:
    """A text model, whole, in ``dtype`` (bf16, f32, f64): of a folder with safetensors, or a .gguf file.
    Attention is ``sdpa``, experts run as transformers chooses.

    Raises:
        MissingDependency: transformers is not installed.
        UnsupportedModel: transformers cannot read it.
        LludaError: it found tensors missing or left over, so that it would not be the same model.
    """
    transformers = require_transformers()
    source: dict[str, Any] = {"local_files_only": True}
    folder = path
    if is_gguf(path):
        folder, source["gguf_file"] = path.parent, path.name
    with silence(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **source)
            options = {"dtype": DTYPES[dtype], "attn_implementation": "sdpa", "output_loading_info": True}
            kind = _model_class(transformers, config)
            model, report = kind.from_pretrained(folder, config=config, **options, **source)
        except (ValueError, KeyError, NotImplementedError, OSError) as error:
            raise UnsupportedModel(f"{path}: transformers cannot load it: {_first_line(error)}") from error
    _require_same_tensors(path, report)
    if dtype == "f64":
        use_eager_experts(model)
    return model.eval().requires_grad_(False)


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


def load_omni_config(path: Path) -> Any:
    """transformers' config of an Omni folder. UnsupportedModel: no folder, or a config that transformers refuses."""
    transformers = require_transformers()
    if not path.is_dir():
        raise UnsupportedModel(f"{path}: the reference reads a folder of safetensors; validate the one it was made of")
    try:
        with silence(transformers):
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UnsupportedModel(f"{path}: transformers cannot read its config: {_first_line(error)}") from error
    # A thinker saved by itself has its own config at the top.
    return config if hasattr(config, "thinker_config") else SimpleNamespace(thinker_config=config)


def load_module(path: Path, dtype: str, kind: Any, config: Any, prefix: str) -> Any:
    """A module of class ``kind`` with all its parameters from the tensors of a folder below ``prefix``. The safetensors
    package reads them, not lluda, and they are named as transformers' own loader names them.

    LludaError: tensors are missing or left over, so that it would not be the same model.
    """
    from transformers.initialization import no_init_weights

    with no_init_weights():
        module = kind._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    state: dict[str, Tensor] = {}
    for name, values in folder_tensors(path, prefix):
        _place(state, shapes, name, values.to(DTYPES[dtype]))
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        found = " ".join(str(error).split())
        raise LludaError(
            f"{path}: transformers' {kind.__name__} does not take these tensors: {found:.{_QUOTED}}"
        ) from error
    if dtype == "f64":
        use_eager_experts(module)
    return module.eval().requires_grad_(False)


def folder_tensors(path: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor whose released name begins with ``prefix``, by the rest of that; fused experts as they are."""
    from safetensors import safe_open

    index = path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
    for file in sorted(set(weight_map.values())) or ["model.safetensors"]:
        with safe_open(path / file, framework="pt") as opened:
            before = missing_prefix(weight_map or opened.keys())
            for name in opened.keys():  # noqa: SIM118  (safe_open is no mapping)
                if (released := released_name(before + name)).startswith(prefix):
                    yield released.removeprefix(prefix), opened.get_tensor(name)


def _place(state: dict[str, Tensor], shapes: dict[str, torch.Size], name: str, values: Tensor) -> None:
    """Into ``state``; an expert's matrix into the stack that transformers keeps of its layer."""
    found = _EXPERT.fullmatch(name)
    stack = f"{found[1]}.{'down_proj' if found[3] == 'down' else 'gate_up_proj'}" if found else ""
    if found is None or stack not in shapes:
        state[name] = values  # load_state_dict names one that does not belong
        return
    if stack not in state:
        state[stack] = torch.empty(shapes[stack], dtype=values.dtype)
    whole = state[stack][int(found[2])]
    part = {"gate": whole[: len(values)], "up": whole[len(values) :], "down": whole}[found[3]]
    part.copy_(values)


@contextmanager
def widened(module: nn.Module) -> Iterator[None]:
    """``module`` with every parameter in float64: those of one leaf at a time while it runs, and of experts one by one,
    so that it takes little more memory than before. A BF16 model's rounded weights stay what they are, and frequencies,
    which are buffers, stay float32."""
    before = use_eager_experts(module)
    owners = [part for part in module.modules() if next(part.parameters(recurse=False), None) is not None]
    hooks = [hook for owner in owners for hook in _widen_while_running(owner)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part, implementation in before:
            part.config._experts_implementation = implementation


def use_eager_experts(module: nn.Module) -> list[tuple[Any, Any]]:
    """Run experts by plain products: grouped ones have no float64 kernel. Returns what to go back to."""
    parts = [part for part in module.modules() if hasattr(getattr(part, "config", None), "_experts_implementation")]
    before: list[tuple[Any, Any]] = [(part, part.config._experts_implementation) for part in parts]  # type: ignore[union-attr]
    for part, _ in before:
        part.config._experts_implementation = "eager"
    return before


class _ExpertsInFloat64:
    """A stack of experts' matrices ``[experts, out, in]`` that widens the one it is asked for."""

    def __init__(self, stack: Tensor) -> None:
        self._stack = stack

    def __getitem__(self, expert: Any) -> Tensor:
        return self._stack[expert].double()


def _widen_while_running(owner: nn.Module) -> list[Any]:
    """Hooks that hold ``owner``'s own parameters in float64 during its forward pass; stacks of experts one at a time.
    What comes in as a float of fewer bits is widened too."""
    originals: list[tuple[nn.Parameter, Tensor]] = []
    stacks: list[tuple[str, nn.Parameter]] = []

    def widen(_module: nn.Module, inputs: Any) -> Any:
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter.dim() == _STACK_AXES:
                stacks.append((name, parameter))
                delattr(owner, name)
                setattr(owner, name, _ExpertsInFloat64(parameter.data))
            else:
                originals.append((parameter, parameter.data))
                parameter.data = parameter.data.double()
        return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    def restore(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        while originals:
            parameter, data = originals.pop()
            parameter.data = data
        while stacks:
            name, parameter = stacks.pop()
            delattr(owner, name)
            setattr(owner, name, parameter)

    return [owner.register_forward_pre_hook(widen), owner.register_forward_hook(restore, always_call=True)]


def _first_line(error: Exception) -> str:
    """Of what another library says, what fits in a message."""
    lines = str(error).strip().splitlines()
    return f"{lines[0]:.{_QUOTED}}" if lines else type(error).__name__
