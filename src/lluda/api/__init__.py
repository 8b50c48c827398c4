"""What a program calls: models and conversations, thin folds over `Engine.submit`."""
