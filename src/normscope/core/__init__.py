"""What every room shares: errors, registries, records, specs, files, and objects loaded by name."""
