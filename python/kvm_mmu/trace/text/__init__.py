"""The text of a trace: where it comes from, its lines, the recording's host, columns and wording."""
