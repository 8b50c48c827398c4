"""Answer a prompt with Qwen3-0.6B: whole, streamed, and in a conversation.

python examples/qwen3_06b_generate.py [MODEL]    (default: Qwen/Qwen3-0.6B from the hub)
"""

import sys

import lluda

model = lluda.load(sys.argv[1] if len(sys.argv) > 1 else "Qwen/Qwen3-0.6B")
print(model.describe())

# One answer, through the chat template, without thinking first. Sampling defaults come from generation_config.json.
answer = model.chat([{"role": "user", "content": "Name three uses of copper."}], enable_thinking=False, max_tokens=100)
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
