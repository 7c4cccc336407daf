"""Spans of submissions and chunks, for whoever collects them by OpenTelemetry; off unless GRADCAM_TRACES says so."""
