"""The ceremony of an offline CA: a plan becomes signed answers and an ARL, and they become what a responder serves."""
