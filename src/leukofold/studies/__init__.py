"""Studies: a grid of configurations, trained run by run, and the table that sets it beside published values."""
