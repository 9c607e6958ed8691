"""The science of the batch: how large is worth using, how the optimizer follows it, how to grow it during a run."""
