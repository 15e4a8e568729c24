"""MLflow's side of tracking."""
