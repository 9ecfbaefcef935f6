"""Compare merged weights with the right ones, and say what is wrong with those that differ."""
