"""What is measured: steps, prompts, callers, listening, speech."""
