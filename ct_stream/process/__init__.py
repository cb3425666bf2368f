"""One operating-system process. This room knows nothing of Kafka, Postgres or companies."""
