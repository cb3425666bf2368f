"""One company, from its event to its outcome: the only layer that knows stream, probes and store together."""
