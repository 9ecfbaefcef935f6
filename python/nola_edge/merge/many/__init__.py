"""One base merged with many adapters, each into an output of its own."""
