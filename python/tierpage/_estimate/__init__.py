"""The command ``tierpage estimate``: a model on fake tensors, its program replayed under the production core."""
