"""The parts of chat.py: rounds, beam search, saved files, the session, the terminal."""
