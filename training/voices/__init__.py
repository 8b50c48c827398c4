"""The voices that speak the training data, one file a family."""
