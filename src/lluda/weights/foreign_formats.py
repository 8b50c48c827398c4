"""Folders and weights of other tools, recognised by names, with a remedy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

_Told = Callable[[str], bool]


def _ends(*suffixes: str) -> _Told:
    return lambda name: name.lower().endswith(suffixes)


def _is(*names: str) -> _Told:
    return lambda name: name in names


_BF16 = "take the BF16 release of this model instead"
_SAFETENSORS = "take the repository it was made from (config.json and safetensors) instead"
_MERGE = "merge it into its base model and save that: model.merge_and_unload().save_pretrained(DIR)"

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

_UNFINISHED: tuple[tuple[_Told, str], ...] = (
    (_is("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"), f"a LoRA or PEFT adapter; {_MERGE}"),
    (_is("zero_to_fp32.py"), "a training state of DeepSpeed; turn it into a model with its own zero_to_fp32.py"),
    (_ends(".distcp"), "a sharded training state of PyTorch; save the model with save_pretrained instead"),
    (_is("model_index.json"), "a diffusers pipeline, not a language model"),
)

_OTHER_FORMATS: tuple[tuple[_Told, str], ...] = (
    (_is("weights.npz"), f"an MLX model; {_SAFETENSORS}"),
    (_ends(".onnx", ".onnx_data"), f"an ONNX export; {_SAFETENSORS}"),
    (_ends(".h5", ".msgpack"), f"a TensorFlow or Flax model; {_SAFETENSORS}"),
    (_is("consolidated.safetensors"), f"weights in their maker's own layout; {_SAFETENSORS}"),
    (_ends(".mlmodel", ".mlpackage", ".tflite", ".engine"), f"a model compiled for one runtime; {_SAFETENSORS}"),
)

_TENSORS: tuple[tuple[_Told, str], ...] = (
    (lambda name: ".lora_A." in name or ".lora_B." in name, f"an adapter that is not merged; {_MERGE}"),
    (_ends(".weight_scale_inv", ".weight_scale", ".input_scale"), f"quantised to FP8; {_BF16}"),
    (_ends(".qweight", ".qzeros", ".g_idx"), f"quantised by GPTQ or AWQ; {_BF16}"),
    (_ends(".absmax", ".quant_map", "__nf4", "__fp4", ".scb"), f"quantised by bitsandbytes; {_BF16}"),
    (_ends(".weight_packed", ".weight_shape"), f"quantised by compressed-tensors; {_BF16}"),
    (_ends(".scales", "_blocks", "_scales"), f"quantised by MLX or to MXFP4; {_BF16}"),
)  # fmt: skip

_WRAPPERS: Mapping[str, str] = {
    "base_model.model.": "saved from inside a PEFT wrapper; save the merged model: "
    "model.merge_and_unload().save_pretrained(DIR)",
    "module.": "saved from inside a wrapper for several GPUs; save model.module instead",
    "_orig_mod.": "saved from a compiled model; save model._orig_mod instead",
    "_fsdp_wrapped_module.": "saved from inside FSDP; gather the whole model, then save it",
}


def foreign_files(names: Iterable[str]) -> str | None:
    """What a folder or repository of files ``names`` is, where it holds no model that lluda reads; None: not known, or
    recognised by its pickle files."""
    listed = list(names)
    found = _first(listed, _UNFINISHED)
    pickled = any(name.lower().endswith(PICKLE_SUFFIXES) for name in listed)
    return found if found or pickled else _first(listed, _OTHER_FORMATS)


def foreign_tensors(stored: Collection[str], wanted: Collection[str]) -> str | None:
    """Why tensors named ``stored`` are not those ``wanted``; None: not known."""
    found = _first(stored, _TENSORS)
    if found is not None:
        return f"holds tensors of a model {found}" if found.startswith("quantised") else f"holds {found}"
    missing, others = set(wanted) - set(stored), set(stored) - set(wanted)
    if longer := _shortened(sorted(others), missing):
        prefix = longer[0].removesuffix(longer[1])
        reason = next((text for wrapper, text in _WRAPPERS.items() if wrapper in prefix), "rename them to load it")
        return f"its tensors' names begin with {prefix!r:.60}, as in {longer[0]:.120}: {reason}"
    if shorter := _shortened(sorted(missing), others):
        prefix = shorter[0].removesuffix(shorter[1])
        return f"its tensors' names lack {prefix!r:.60}, as in {shorter[1]:.120}: a part of a model, saved by itself"
    return None


def _shortened(names: Iterable[str], others: Collection[str]) -> tuple[str, str] | None:
    """The first of ``names`` that is one of ``others`` without its first parts, and that one."""
    for name in names:
        rest = name.partition(".")[2]
        while rest:
            if rest in others:
                return name, rest
            rest = rest.partition(".")[2]
    return None


def _first(names: Collection[str], table: tuple[tuple[_Told, str], ...]) -> str | None:
    """The first sentence of ``table`` that one of ``names`` tells."""
    return next((text for matches, text in table if any(map(matches, names))), None)
