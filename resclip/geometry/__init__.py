"""The geometry of label maps: connected components, their contours, and masks by run lengths."""
