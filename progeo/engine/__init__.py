"""Running on Accelerate: run folder, checkpoints, loop, log. Knows no task."""
