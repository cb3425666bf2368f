"""One company, from its event to its outcome: the one layer that knows stream, probes and store together."""
