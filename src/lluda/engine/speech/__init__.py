"""Speech of many answers at once: talker, code predictor and code2wav."""
