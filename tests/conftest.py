import os

# Two cores: more threads than that make small networks slower, and worker processes must not fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Threads that wait must sleep: spinning, those of one process would starve those of another.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
