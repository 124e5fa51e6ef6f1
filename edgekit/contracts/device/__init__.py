"""What runs on a device before anything is installed there: the standard library, nothing else."""
