"""What the studies share, and the halves of those that are too long for one file."""
