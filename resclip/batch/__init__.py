"""Segmenting images by the thousand: a source of images → label files and a manifest in an output folder.

`sources.py` says which images there are, `store.py` where the files go, `manifest.py` what has been done. What
crosses processes is small and can be pickled. Needs the extra `batch`.
"""
