"""Loss, bits per byte, baselines, comparisons."""
