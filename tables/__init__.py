"""Faust tables: state kept in RocksDB beside its changelog."""
