"""Published policy cases, sent as traffic through a lab."""
