"""A spoken question in, a spoken answer out, streamed: text to the terminal, speech to a file while it is made.

python examples/omni_full_pipeline.py MODEL QUESTION.wav ANSWER.wav [SPEAKER]
"""

import sys

import lluda
from lluda.outputs.audio_sink import open_audio_sink

model_path, question, target, *rest = sys.argv[1:]
model = lluda.load(model_path)
print(model.describe())

message = {"role": "user", "content": [{"type": "audio", "path": question}]}
with open_audio_sink(target, model.voice().sample_rate) as sink:
    for event in model.speak([message], speaker=rest[0] if rest else None):
        if isinstance(event, lluda.Token):
            print(event.text, end="", flush=True)
        elif isinstance(event, lluda.SpeechChunk):
            sink.write(event.samples)
        elif isinstance(event, lluda.SpeechCompletion):
            print(
                f"\n[{event.frames} frames in {event.seconds:.2f} s, first sound after {event.first_audio_seconds} s]"
            )
