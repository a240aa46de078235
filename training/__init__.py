"""The parts of train.py: the data, the processes, and what a run keeps."""
