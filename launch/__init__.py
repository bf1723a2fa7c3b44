"""Where and how to run it: benchmarks, and later compiling, launching and sweeping."""
