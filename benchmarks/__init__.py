"""Every speed figure that the README quotes: `python -m benchmarks.NAME`."""
