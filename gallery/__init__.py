"""Painted scenes of which everything is known, with words for each, and what is made of them."""
