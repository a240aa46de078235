"""The parts of evaluate.py: what is asked, the answers, who judges them, tables and the report."""
