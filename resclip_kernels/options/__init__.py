"""The options of the ops, one module for each: importable without torch, so that methods can be listed at once."""
