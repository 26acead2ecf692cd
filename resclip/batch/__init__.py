"""Segmenting pictures by the thousand: a source of pictures → label files and a manifest in an output folder.

`sources.py` says which pictures there are, `store.py` where the files go, `manifest.py` what has been done. What
crosses processes is small and can be pickled. Needs the extra `batch`.
"""
