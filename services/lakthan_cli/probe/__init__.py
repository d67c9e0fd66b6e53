"""`lakthan probe`: a running installation, asked from outside as its clients ask it."""
