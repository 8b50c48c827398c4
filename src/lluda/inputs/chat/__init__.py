"""Messages, chat templates and the prompts made of them."""
