"""Scenarios, runs, comparisons: what is asked of machines and references."""
