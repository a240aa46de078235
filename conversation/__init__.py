"""The parts of chat.py: rounds and their cache, typed lines, the terminal."""
