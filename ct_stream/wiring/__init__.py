"""Which parts does the program have, and how are they put together? The only place that knows all of them."""
