"""The process that a registration runs in: interruption, memory and devices, warnings."""
