"""Show that lluda computes what transformers computes, layer by layer, in float32 and in BF16.

    python examples/qwen3_06b_validate.py [MODEL_DIR]

The same as a command: lluda validate -m MODEL_DIR --reference transformers --dtype bf16 --plot errors.png
"""

import sys

from lluda.cli.main import main

model = sys.argv[1] if len(sys.argv) > 1 else "Qwen/Qwen3-0.6B"
for dtype in ("f32", "bf16"):
    main(["validate", "-m", model, "--reference", "transformers", "--dtype", dtype, "--tokens", "64"])
