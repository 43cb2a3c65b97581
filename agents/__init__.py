"""Faust agents: what runs on each topic."""
