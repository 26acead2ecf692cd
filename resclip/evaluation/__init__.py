"""How well methods segment: datasets as they lie on disk → confusion matrices → figures → tables, plots and files.

`runner.py` has the order of the work: read it first.
"""
