"""What all metrics check of their rows."""


def check_paired(**lengths: int) -> None:
    """Refuses two columns of different lengths, which the keywords name.

    Raises:
        ValueError: they differ.
    """
    (left, m), (right, n) = lengths.items()
    if m != n:
        raise ValueError(
            f"{left} has {m} rows and {right} has {n}; pass one row of each per query."
        )
