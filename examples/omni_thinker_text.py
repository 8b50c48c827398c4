"""Ask Qwen3-Omni about a picture, in text, and then something more about it.

python examples/omni_thinker_text.py MODEL PICTURE [QUESTION]
"""

import argparse
import sys

import lluda


def main() -> None:
    """Load the model, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a .gguf file, or org/name")
    parser.add_argument("picture")
    parser.add_argument("question", nargs="?", default="What is in this picture?")
    args = parser.parse_args()

    model = lluda.load(args.model)
    print(model.describe())
    talk = model.conversation()
    picture = [{"type": "image", "path": args.picture}, {"type": "text", "text": args.question}]
    for turn in (picture, "Say it in five words."):
        # The second turn computes only what is new: the picture stays in the conversation's cache.
        for event in talk.ask(turn, max_tokens=200):
            if isinstance(event, lluda.Token):
                print(event.text, end="", flush=True)
        print()


if __name__ == "__main__":
    try:
        main()
    except lluda.LludaError as error:
        sys.exit(str(error))
