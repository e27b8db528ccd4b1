"""What a user types: options, output, exit codes, files."""
