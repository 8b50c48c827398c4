"""Transcribe a recording (wav, flac, mp3, m4a, ogg, webm, …) with Qwen3-Omni, or follow another instruction about it.

python examples/omni_audio_to_text.py MODEL RECORDING [INSTRUCTION]
"""

import argparse
import sys

import lluda


def main() -> None:
    """Load the model, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a .gguf file, or org/name")
    parser.add_argument("recording")
    parser.add_argument("instruction", nargs="?", default="Transcribe the speech.")
    args = parser.parse_args()

    model = lluda.load(args.model)
    print(model.describe())
    message = {
        "role": "user",
        "content": [{"type": "audio", "path": args.recording}, {"type": "text", "text": args.instruction}],
    }
    answer = model.chat([message], temperature=0, max_tokens=1024)
    print(answer.text)
    print(f"[{answer.prompt_tokens} tokens of prompt in {answer.prefill_seconds:.2f} s]")


if __name__ == "__main__":
    try:
        main()
    except lluda.LludaError as error:
        sys.exit(str(error))
