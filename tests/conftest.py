import os

# Two cores: more threads than that make small networks slower, and worker processes must not fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "2")
