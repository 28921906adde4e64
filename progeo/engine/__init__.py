"""Training infrastructure on Accelerate: run folder, checkpoints, training loop, log. Independent of the task."""
