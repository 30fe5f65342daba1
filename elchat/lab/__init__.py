"""Experiments on autonomy: ablation, costs, mood, diversity, abstention, and the card they fill."""
