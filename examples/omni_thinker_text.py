"""Ask Qwen3-Omni about an image, in text, and then something more about it.

python examples/omni_thinker_text.py MODEL IMAGE [QUESTION]
"""

import argparse
import sys

import lluda


def main() -> None:
    """Load the model, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a .gguf file, or org/name")
    parser.add_argument("image")
    parser.add_argument("question", nargs="?", default="What is in this image?")
    args = parser.parse_args()

    model = lluda.load(args.model)
    print(model.describe())
    talk = model.conversation()
    question = [{"type": "image", "path": args.image}, {"type": "text", "text": args.question}]
    for turn in (question, "Say it in five words."):
        # The second turn computes only what is new: the image stays in the conversation's cache.
        for event in talk.ask(turn, max_tokens=200):
            if isinstance(event, lluda.Token):
                print(event.text, end="", flush=True)
        print()


if __name__ == "__main__":
    try:
        main()
    except lluda.LludaError as error:
        sys.exit(str(error))
