"""Measure Qwen3-0.6B side by side with transformers: prefill, decode, memory, share of the memory bandwidth.

    python examples/qwen3_06b_bench.py Qwen/Qwen3-0.6B [OPTIONS of lluda bench]

The same as a command: lluda bench -m MODEL --against transformers --gen 32 --repeat 3
"""

import argparse
import subprocess
import sys


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a .gguf file, or org/name")
    args, options = parser.parse_known_args()
    bench = ["bench", "-m", args.model, "--against", "transformers", "--gen", "32", "--repeat", "3"]
    return subprocess.run([sys.executable, "-m", "lluda", *bench, *options], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
