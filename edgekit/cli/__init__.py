"""Command line: results on stdout, progress and errors on stderr, stable exit codes."""
