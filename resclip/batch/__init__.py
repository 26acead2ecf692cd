"""Batch jobs: a source of images → label files and a manifest in an output folder; needs the extra `batch`.

`sources.py` finds the images, `steps.py` has the steps of each and runs them here, `ray_engine.py` on a cluster;
`storage.py` writes files and `manifest.py` records what is done. What crosses processes is small and can be pickled.
"""
