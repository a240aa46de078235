"""The parts of convert_weights.py: formats has the tables, checkpoints opens what they describe."""
