"""The parts of convert_weights.py: the public formats, what lies where, writing."""
