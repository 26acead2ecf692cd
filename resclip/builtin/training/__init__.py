"""The training of the built-in model; part of the repository, not of the installed package."""
