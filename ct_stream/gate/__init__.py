"""The decision, and nothing else: no await, clock, randomness, environment, Kafka or SQL (import-linter checks it)."""
