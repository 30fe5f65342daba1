"""Measuring models: bits per byte, tasks, statistics, comparison."""
