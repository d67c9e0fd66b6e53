"""The subcommands of `lakthan`, one module for each or for a family."""
