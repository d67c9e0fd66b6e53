"""The HTTP edge that both services share: the public front, the admin port, and the life of a process."""
