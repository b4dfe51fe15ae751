"""What is learned: losses, what is measured, and what is written of it."""
