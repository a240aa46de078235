"""The parts of evaluate.py: benchmark items, judges, tables."""
