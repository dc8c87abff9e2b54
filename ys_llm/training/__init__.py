"""Set-up, loop, checkpoints, forecasts."""
