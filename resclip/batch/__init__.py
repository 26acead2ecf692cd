"""Batch jobs: a source of images → label files and a manifest in an output folder; needs the extra `batch`.

`sources.py` finds the images, `steps.py` has the four steps of each, `local.py` and `ray_engine.py` run them,
`storage.py` writes files and `manifest.py` records what is done. What crosses processes is small and can be pickled.
"""
