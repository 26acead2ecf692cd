"""How well methods segment: datasets as they lie on disk → confusion counts → figures → tables, plots and files.

`protocol.py` has the order of the work; read it first. `ablation.py` stands on it. Knows no method's inside: segmenters
come from outside.
"""
