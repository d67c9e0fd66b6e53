"""What operators see: one log line per event, and the series that Prometheus reads."""
