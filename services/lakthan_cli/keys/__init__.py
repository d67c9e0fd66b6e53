"""What `lakthan keys` does with key lists: who they are for, what may come in, and the paper of it."""
