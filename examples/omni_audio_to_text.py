"""Let Qwen3-Omni listen to a recording (wav, flac, mp3, m4a, ogg, webm, …) and write down what it heard.

python examples/omni_audio_to_text.py MODEL RECORDING [INSTRUCTION]
"""

import sys

import lluda

model_path, recording, *rest = sys.argv[1:]
model = lluda.load(model_path, max_context=32768)
print(model.describe())

instruction = rest[0] if rest else "Transcribe the speech."
message = {
    "role": "user",
    "content": [{"type": "audio", "path": recording}, {"type": "text", "text": instruction}],
}
answer = model.chat([message], temperature=0, max_tokens=1024)
print(answer.text)
print(f"[{answer.prompt_tokens} tokens of prompt in {answer.prefill_seconds:.2f} s]")
