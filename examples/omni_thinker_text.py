"""Ask Qwen3-Omni about a picture, in text, and then something more about it.

python examples/omni_thinker_text.py MODEL PICTURE [QUESTION]
"""

import sys

import lluda

model_path, picture, *rest = sys.argv[1:]
model = lluda.load(model_path)
print(model.describe())

talk = model.conversation()
content = [
    {"type": "image", "path": picture},
    {"type": "text", "text": rest[0] if rest else "What is in this picture?"},
]
for turn in (content, "Say it in five words."):
    # The second turn computes only what is new: the picture stays in the conversation's cache.
    for event in talk.ask(turn, max_tokens=200):
        if isinstance(event, lluda.Token):
            print(event.text, end="", flush=True)
    print()
