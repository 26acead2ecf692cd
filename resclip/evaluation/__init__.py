"""How well methods segment: metrics, stored figures and their tables.

Knows no picture and no model. What is measured is elsewhere: the drawn scenes in `resclip.builtin.evaluate`.
"""
