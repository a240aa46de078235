"""The parts of explain.py: what is recorded of a run, the figures, the chapters, the costs."""
