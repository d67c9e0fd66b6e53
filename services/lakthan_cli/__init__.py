"""The `lakthan` command: the demo, and the tools of operators and users."""
