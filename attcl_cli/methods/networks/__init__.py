"""The networks: nn.Modules alone, no files, no losses, no training."""
