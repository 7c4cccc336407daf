"""An example: a network that reads grey pictures and tells two classes apart."""
