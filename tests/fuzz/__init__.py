"""Properties of every parser of what others wrote, and the coverage-guided fuzzer that looks for what breaks them."""
