"""One operating-system process: it knows no Kafka, no Postgres and no company."""
