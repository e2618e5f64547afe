"""The same functions in less time and memory, for inference."""
