"""The verbs of `gradcam`, beside those in `producer.cli`."""
