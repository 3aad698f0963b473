"""Hook points, the hooks on them and what a pass leaves: names, contexts, slices and the activation cache."""
