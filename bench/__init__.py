"""How much does the gate cost beside the probes that it must make? Ratios, side by side, in one run."""
