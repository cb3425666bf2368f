"""The decision, and nothing else: no await, clock, randomness, environment, Kafka or SQL (held by import-linter)."""
