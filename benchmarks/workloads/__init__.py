"""What is measured? A file for each workload, with ``measure(repeats, size) -> list[Row]``."""
