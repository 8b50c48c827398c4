"""Measure Qwen3-0.6B side by side with transformers: prefill, decode, memory, share of the memory bandwidth.

    python examples/qwen3_06b_bench.py [MODEL_DIR]

The same as a command: lluda bench -m MODEL_DIR --against transformers --plot bench.png
"""

import sys

from lluda.cli.main import main

model = sys.argv[1] if len(sys.argv) > 1 else "Qwen/Qwen3-0.6B"
sys.exit(main(["bench", "-m", model, "--against", "transformers", "--gen", "32", "--repeat", "3"]))
