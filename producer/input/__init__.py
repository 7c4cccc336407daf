"""What the user names becomes a stream of images: lists of every kind, folders, prefixes."""
