"""Show that lluda computes what transformers computes, layer by layer, in float32 and in BF16.

    python examples/qwen3_06b_validate.py Qwen/Qwen3-0.6B [OPTIONS of lluda validate]

The same as a command: lluda validate -m MODEL --reference transformers --dtype bf16 --tokens 64
"""

import argparse
import subprocess
import sys


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a .gguf file, or org/name")
    args, options = parser.parse_known_args()
    codes = []
    for dtype in ("f32", "bf16"):
        validate = ["validate", "-m", args.model, "--reference", "transformers", "--dtype", dtype, "--tokens", "64"]
        codes.append(subprocess.run([sys.executable, "-m", "lluda", *validate, *options], check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
