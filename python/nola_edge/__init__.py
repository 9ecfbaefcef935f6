"""nola-edge."""
