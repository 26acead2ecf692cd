"""One run on one GPU: every op and the whole pipeline, checked, timed and set beside the figures they must reach.

`python -m benchmarks.gpu` from the project's root. Read `suite.py` first: it says what is measured.
"""
