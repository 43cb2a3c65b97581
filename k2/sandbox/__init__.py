"""Statements of anybody, run in processes that can open, reach and keep nothing."""
