"""What a job made, as its user reads it: records, pictures, addresses, lists of failures."""
