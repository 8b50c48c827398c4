"""Answer a prompt with Qwen3-0.6B: whole, streamed, and in a conversation.

python examples/qwen3_06b_generate.py Qwen/Qwen3-0.6B    (from the hub; or a folder, or a .gguf file)
"""

import argparse
import sys

import lluda


def main() -> None:
    """Load the model, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a .gguf file, or org/name")
    args = parser.parse_args()

    model = lluda.load(args.model)
    print(model.describe())

    # One answer, through the chat template, without thinking first. What else is left out, such as temperature and
    # top_k, comes from the model's generation_config.json.
    question = {"role": "user", "content": "Name three uses of copper."}
    answer = model.chat([question], enable_thinking=False, max_tokens=100)
    print(answer.text, f"[{answer.finish_reason}, {answer.tokens_per_second:.1f} tok/s]")

    # The same as a stream: text arrives as soon as it is safe to show.
    for event in model.stream("The three primary colours are", temperature=0, max_tokens=24):
        if isinstance(event, lluda.Token):
            print(event.text, end="", flush=True)
    print()

    # A conversation keeps its KV cache: each turn computes only what is new.
    talk = model.conversation(system="Answer in one sentence.")
    for question in ("What is the boiling point of water?", "And on Mount Everest?"):
        for event in talk.ask(question, enable_thinking=False, max_tokens=60):
            if isinstance(event, lluda.Token):
                print(event.text, end="", flush=True)
        print()


if __name__ == "__main__":
    try:
        main()
    except lluda.LludaError as error:
        sys.exit(str(error))
