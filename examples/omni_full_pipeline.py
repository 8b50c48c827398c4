"""A spoken question in, a spoken answer out, streamed: text to the terminal, speech to a file.

python examples/omni_full_pipeline.py MODEL QUESTION.wav ANSWER.wav [SPEAKER]
"""

import argparse
import sys

import lluda


def main() -> None:
    """Load the model, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, a .gguf file, or org/name")
    parser.add_argument("question", help="a recording")
    parser.add_argument("answer", help="the .wav or .flac file to write, or speakers for the sound device")
    parser.add_argument("speaker", nargs="?", help="a name of the model's config (default: its first)")
    args = parser.parse_args()

    model = lluda.load(args.model)
    print(model.describe())
    message = {"role": "user", "content": [{"type": "audio", "path": args.question}]}
    with lluda.open_audio_sink(args.answer, model.speech_stack().sample_rate) as sink:
        for event in model.speak([message], speaker=args.speaker):
            if isinstance(event, lluda.Token):
                print(event.text, end="", flush=True)
            elif isinstance(event, lluda.SpeechChunk):
                sink.write(event.samples)
            elif isinstance(event, lluda.SpeechCompletion):
                first = event.first_audio_seconds
                print(f"\n[{event.frames} frames in {event.seconds:.2f} s, first sound after {first} s]")


if __name__ == "__main__":
    try:
        main()
    except lluda.LludaError as error:
        sys.exit(str(error))
