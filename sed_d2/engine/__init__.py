"""Training, evaluation and the processes that they run in."""
