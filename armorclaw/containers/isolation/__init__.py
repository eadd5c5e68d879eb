"""What really confines an agent, asked from the kernel and the engine."""
