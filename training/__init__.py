"""The parts of train.py: what it trains on, and what a run keeps."""
