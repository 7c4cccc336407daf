"""Where jobs and workers stand, for Prometheus and for what starts and stops workers."""
