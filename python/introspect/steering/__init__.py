"""Control vectors: ``training`` and arithmetic, ``steer`` (a model with a vector added), ``norms`` of residuals."""
