"""`equicat search`: what a search finds is printed as a table."""

from typing import Any


def search(config: str, **options: Any) -> None:
    """Find options by training with many: the sweep of Weights & Biases without it, resumable, by several processes.

    Args:
        config: Configuration file, or the name of a built-in one: what all trials have in common.
    """
    from equicat.studies import search as study

    results = study.search(config, **options)
    print(f"\n{study.as_text(results)}\n\nbest run: {results.trials[0]['run']}")
