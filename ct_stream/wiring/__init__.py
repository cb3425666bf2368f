"""Puts the parts of the program together; the only place that knows all of them."""
