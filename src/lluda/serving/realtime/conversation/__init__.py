"""What was said so far: items, their edits, and transcripts of what was heard."""
