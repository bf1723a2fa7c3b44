"""Programs that start runs and sweeps, report on them, measure, and compile for TPUs."""
