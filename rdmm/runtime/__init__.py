"""The process that a registration runs in: interruption, progress, memory and devices, warnings."""
