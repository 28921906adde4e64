"""Checks of options that are counts."""


def check_counts(aggregation: str, **options: int) -> None:
    """Check that options of an aggregation are at least 1.

    Raises:
        ValueError: one is not; the message names it.
    """
    for name, count in options.items():
        if count < 1:
            raise ValueError(f"`aggregation_options`: {name} of {aggregation} must be at least 1, got {count}.")
