"""What is measured of this project, and how the figures reach its pages: `python -m benchmarks --help` lists it."""
