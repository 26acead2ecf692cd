"""One run on one GPU: every op and the whole pipeline, checked, timed and set beside the figures that they must reach.

`suite.py` says what is measured, and in which order.
"""
