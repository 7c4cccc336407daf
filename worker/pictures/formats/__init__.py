"""Files of pictures, a module for each format: bytes of strangers become upright RGB, or are refused in a sentence."""
