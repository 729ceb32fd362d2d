"""The laboratory: runs, comparisons, reports and presets."""
