"""The parts of bench.py: models to time, what is timed, the cost of training, other programs."""
