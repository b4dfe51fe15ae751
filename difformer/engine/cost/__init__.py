"""What a run takes of time and memory, known beforehand."""
