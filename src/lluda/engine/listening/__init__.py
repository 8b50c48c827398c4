"""A turn that is being spoken: where speech starts and ends, and what is computed meanwhile."""
