"""K2: trades and quotes from Kafka into Apache Iceberg, exactly once, and out by query."""

__version__ = "0.1.0"
