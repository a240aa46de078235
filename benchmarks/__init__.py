"""The parts of bench.py: models to time, the costs of training, other programs."""
